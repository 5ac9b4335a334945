"""``lrenv report``: one report from the results of several evaluations, of any machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.training.evaluate import publish
from lrenv.training.records import MATCHED, RunRecord, summaries
from lrenv.training.report_plots import is_learned
from lrenv.training.runfolder import read_json
from lrenv.training.settings import ReportSettings

_FORMAT = 1


def report(settings: ReportSettings) -> Path:
    """Merge results, print the table, and write results and report; returns the report's path.

    Raises:
        InputError: A file is missing, or holds no results of an evaluation; or see :func:`merge`.
    """
    merged = merge([_read(path) for path in settings.results])
    return publish(merged, make_folder(settings.output))


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join results; of a run that several hold, that of the first one counts.

    Args:
        parts: Results as ``lrenv evaluate`` writes them; settings and environment of the merged
            ones are those of the first.

    Raises:
        InputError: Tasks, policies or experts of one name are not the same.
    """
    if not parts:
        raise InputError("Expected the results of at least one evaluation, got none; name some.")
    records = [record for part in parts for record in _named(part)]
    _check_names(records)
    runs: dict[tuple[Any, ...], RunRecord] = {}
    for record in records:
        # What was found in a run, such as a peak, is no other method; a hint is.
        hint = record.detail if is_learned(record.method) else None
        runs.setdefault((record.task, record.method, hint, record.seed), record)
    data = {
        key: between.join(
            dict.fromkeys(text for part in parts for text in part["data"][key].split(between))
        )
        for key, between in (("name", ", "), ("note", "; "))
    }
    return {
        **parts[0],
        "data": data,
        "runs": [asdict(record) for record in runs.values()],
        "summary": summaries(list(runs.values())),
    }


def _named(part: Mapping[str, Any]) -> list[RunRecord]:
    """The runs; an LR-matched constant that names no policy is that of the only one there."""
    records = [RunRecord(**row) for row in part["runs"]]
    learned = {record.method for record in records if is_learned(record.method)}
    if len(learned) != 1:
        return records
    called = f"{MATCHED}: {learned.pop().removeprefix('learned: ')}"
    return [r.relabelled(called) if r.method == MATCHED else r for r in records]


def _check_names(records: Sequence[RunRecord]) -> None:
    known: dict[str, str] = {}
    for record in records:
        for name, meaning in _meanings(record):
            if known.setdefault(name, meaning) != meaning:
                raise InputError(
                    f"Expected the same {name} in all results, got {known[name]} and {meaning}; "
                    "make a report of each."
                )


def _meanings(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What names in a record stand for, as far as it says."""
    if record.total_steps is not None:
        yield f"task {record.task!r}", f"{record.total_steps} steps on {record.data}"
    if record.policy_hash is not None:
        yield f"policy {record.policy!r}", f"weights {record.policy_hash[:12]}"
    if record.detail.startswith(f"{record.method}, "):  # an expert at a peak that was given
        yield f"{record.method} on {record.task!r}", f"'{record.detail}'"


def _read(path: Path) -> dict[str, Any]:
    file = path / "results.json" if path.is_dir() else path
    found = read_json(file)
    if not (isinstance(found, dict) and found.get("format") == _FORMAT and _is_whole(found)):
        raise InputError(
            f"Expected results of lrenv evaluate (format {_FORMAT}) in {file}, got something else; "
            "name its folder or its results.json."
        )
    try:
        for row in found["runs"]:
            RunRecord(**row)
    except TypeError as error:
        raise InputError(
            f"Expected runs as this version of lrenv records them in {file}, got: {error}; "
            "use the version that wrote them."
        ) from None
    return found


def _is_whole(found: Mapping[str, Any]) -> bool:
    data = found.get("data")
    named = isinstance(data, dict) and all(isinstance(data.get(k), str) for k in ("name", "note"))
    return named and isinstance(found.get("runs"), list)
