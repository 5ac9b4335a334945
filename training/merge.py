"""``lrenv report``: one report from the results of several evaluations, of any machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.training.evaluate import publish
from lrenv.training.records import RunRecord, summaries
from lrenv.training.runfolder import read_json
from lrenv.training.settings import ReportSettings

_FORMAT = 1


def report(settings: ReportSettings) -> Path:
    """Merge results, print the table, and write results and report; returns the report's path.

    Raises:
        InputError: A file is missing, or holds no results of an evaluation.
    """
    merged = merge([_read(path) for path in settings.results])
    return publish(merged, make_folder(settings.output))


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join results; of a run that several hold, that of the first one counts.

    Args:
        parts: Results as ``lrenv evaluate`` writes them; settings and environment of the merged
            ones are those of the first.
    """
    runs: dict[tuple[Any, ...], RunRecord] = {}
    for part in parts:
        for row in part["runs"]:
            record = RunRecord(**row)
            runs.setdefault((record.task, record.method, record.detail, record.seed), record)
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


def _read(path: Path) -> dict[str, Any]:
    file = path / "results.json" if path.is_dir() else path
    found = read_json(file)
    if not isinstance(found, dict) or found.get("format") != _FORMAT or "runs" not in found:
        raise InputError(
            f"Expected results of lrenv evaluate (format {_FORMAT}) in {file}, got something else; "
            "name its folder or its results.json."
        )
    return found
