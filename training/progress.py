"""Progress bars of long work, and the log of a job."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
PROGRESS = "progress.jsonl"
"""What ``lrenv monitor`` follows: a line a start of the job, and a line an optimizer step."""
T = TypeVar("T")


def progress_bar() -> Progress:
    """Make a progress display with description, bar, count, time used and left, and a status."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    )


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar."""
    with progress_bar() as bar:
        count = total if total is not None else len(items)  # type: ignore[arg-type]
        task = bar.add_task(description, total=count, status="")
        for item in items:
            yield item
            bar.advance(task)


class ProgressLog:
    """Appends lines to the log that ``lrenv monitor`` follows, each with the time it is written at.

    A start says how many steps are behind the job: what the log holds of later ones, from before a
    kill, no longer counts.

    Args:
        path: The log.
        start: Optimizer steps behind the job.
        total_steps: Length of the run in optimizer steps.
    """

    def __init__(self, path: Path, start: int, total_steps: int) -> None:
        cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", buffering=1)
        self._file.write("\n" if cut else "")
        self.write(start=start, total_steps=total_steps)

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, **values: Any) -> None:
        """Append a line of values; floats that are not finite become null."""
        row = {"time": round(time.time(), 3), **values}
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[name] = None
        self._file.write(json.dumps(row) + "\n")
