"""Progress bars of long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
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
