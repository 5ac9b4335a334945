"""Trials in files, as JSON lines or Parquet, to move them between policy databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lrenv.errors import InputError
from lrenv.files import write_atomic
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.trial_record import TrialRecord, record_from, to_plain

_ROWS = 500
"""Trials held in memory at a time."""
_MAPS = ("features", "metrics", "curve", "environment")
"""Fields that are maps in Parquet."""


def export_trials(database: PolicyDatabase, path: Path) -> int:
    """Write all trials to a file, the oldest first, and return how many.

    JSON lines hold one trial each, with all its fields. Parquet has a column a field; features,
    metrics, curve and environment are maps, parameters are JSON.

    Raises:
        InputError: The suffix is neither .jsonl nor .parquet, or there is no room.
    """
    write = _format(path).write
    counts: list[int] = []
    write_atomic(path, lambda temporary: counts.append(write(temporary, database.stream())))
    return counts[0]


def import_trials(database: PolicyDatabase, path: Path) -> tuple[int, int]:
    """Store the trials of a file that the database lacks.

    Returns:
        How many were new, and how many the file has.

    Raises:
        InputError: The suffix is unknown, there is no such file, or it is damaged. Damage to some
            trials leaves out these alone.
    """
    kind = _format(path)
    if not path.is_file():
        raise InputError(f"Expected trials in a file at {path}, got no such file; check the path.")
    damaged: list[tuple[int, str]] = []
    count = 0

    def sound() -> Iterator[TrialRecord]:
        nonlocal count
        for number, item in kind.read(path):
            count += 1
            try:
                yield record_from(kind.decode(item))
            except (TypeError, ValueError, RecursionError) as error:
                damaged.append((number, str(error)))

    new = database.add(sound())
    if damaged:
        lines = ", ".join(str(number) for number, _ in damaged[:10])
        raise InputError(
            f"Expected a trial on every line of {path}, got damage on {len(damaged)}: {lines}"
            f"{', ...' if len(damaged) > 10 else ''} (line {damaged[0][0]}: {damaged[0][1]}); "
            f"all others are stored, {new} of them new: mend the damage and import again."
        )
    return new, count


@dataclass(frozen=True)
class _Format:
    """How a kind of file is written, how its numbered items are read, and made the fields of one.

    Writing returns how many were written; decoding raises ValueError where an item is damaged.
    """

    write: Callable[[Path, Iterable[TrialRecord]], int]
    read: Callable[[Path], Iterator[tuple[int, Any]]]
    decode: Callable[[Any], Any]


def _format(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise InputError(
            f"Expected a file that ends in {' or '.join(_FORMATS)}, got {path.name}; rename it."
        )
    return _FORMATS[path.suffix]


def _write_jsonl(path: Path, records: Iterable[TrialRecord]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_plain(record), allow_nan=False) + "\n")
            count += 1
    return count


def _read_jsonl(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _write_parquet(path: Path, records: Iterable[TrialRecord]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    schema, rows, count = _schema(), iter(records), 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := [_row(record) for record in islice(rows, _ROWS)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(_ROWS) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"Expected a Parquet file at {path}, got: {reason}; export it again."
        ) from None


def _schema() -> Any:
    import pyarrow as pa

    kinds: dict[str, Any] = {name: pa.string() for name in TrialRecord.__dataclass_fields__}
    kinds |= {"seed": pa.int64(), "steps": pa.int64(), "seconds": pa.float64()}
    kinds |= {name: pa.map_(pa.string(), pa.float64()) for name in ("features", "metrics")}
    kinds["environment"] = pa.map_(pa.string(), pa.string())
    kinds["curve"] = pa.map_(pa.string(), pa.list_(pa.float32()))
    return pa.schema(list(kinds.items()))


def _row(record: TrialRecord) -> dict[str, Any]:
    row = vars(record) | {"parameters": json.dumps(record.parameters)}
    return row | {name: list(row[name].items()) for name in _MAPS}


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`_row`; what does not fit is left for the checks of the record."""
    fields = dict(row)
    for name in _MAPS:
        if isinstance(row.get(name), list):
            fields[name] = dict(row[name])
    if isinstance(row.get("parameters"), str):
        fields["parameters"] = json.loads(row["parameters"])
    return fields


_FORMATS = {
    ".jsonl": _Format(_write_jsonl, _read_jsonl, json.loads),
    ".parquet": _Format(_write_parquet, _read_parquet, _fields),
}
