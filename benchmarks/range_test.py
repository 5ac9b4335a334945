"""How far the range test's suggestion is from the tuned peak: ``python benchmarks/range_test.py``.

On the unseen trainees, beside torch-lr-finder's (the steepest fall of a smoothed sweep, as its plot
suggests), and with ``--training`` on tasks of the training family, on which the lengths of the
grids' runs and the distances of the suggestions from the LRs of the lowest losses were set. The
tuned peak is that of the tuned expert, whose grid has three peaks a decade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from rich.table import Table

from lrenv.errors import InputError
from lrenv.trainees.families import training_task
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.tasks import Task
from lrenv.trainees.unseen import unseen_tasks
from lrenv.training.expert_search import search_experts
from lrenv.training.progress import console, track
from lrenv.training.range_page import range_test_of
from lrenv.training.runfolder import write_json

FACTOR = 3.0
"""A suggestion is right within that factor of the tuned peak."""

LONGEST = 800
"""Optimizer steps of a training task at most."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    training: int = 0
    """Take the first tasks of the training family instead of the unseen ones, without long runs."""
    output: Path = Path("runs/range_test.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Test, print the table, write the JSON file."""
    torch.set_num_threads(1)
    tasks = unseen_tasks()
    if settings.training:
        drawn = {str(i): training_task(i, "balanced") for i in range(settings.training)}
        tasks = {i: task for i, task in drawn.items() if task.spec.total_steps <= LONGEST}
    rows = [_row(name, task) for name, task in track(list(tasks.items()), "Range tests")]
    table = Table("method", "within 3 × of the tuned peak", "median of suggestion / peak")
    for method in ("sweep", "lowest of the sweep", "torch-lr-finder", "grid", "grid, validated"):
        ratios = [row[method] / row["peak"] for row in rows if row[method]]
        right = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)
        table.add_row(method, f"{right} of {len(rows)}", f"{median(ratios):.2f}")
    console.print(table)
    write_json(settings.output, rows)


def _row(name: str, task: Task) -> dict[str, Any]:
    search = search_experts(task)
    row: dict[str, Any] = {"task": name, "peak": search.peaks[search.best]}
    sweep = _tested(task, "sweep")
    row["sweep"] = sweep and sweep.suggestion
    row["lowest of the sweep"] = sweep and sweep.best
    row["torch-lr-finder"] = sweep and _steepest(sweep.lrs, sweep.losses)
    for name, validate in (("grid", False), ("grid, validated", True)):
        grid = _tested(task, "grid", validate)
        row[name] = grid and grid.suggestion
    return row


def _tested(task: Task, mode: Any, validate: bool = False) -> Any:
    try:
        return range_test_of(
            build_trainee(task), validate=validate, low=1e-5, high=100.0, mode=mode
        )
    except InputError:
        return None


def _steepest(lrs: tuple[float, ...], losses: tuple[float, ...]) -> float:
    """torch-lr-finder's suggestion: the steepest gradient of the smoothed loss over the sweep.

    As its ``plot`` does by default, without the first 10 and the last 5 points.
    """
    places = list(range(len(losses)))[10:-5] or list(range(len(losses)))
    slopes = torch.gradient(torch.tensor([losses[k] for k in places]))[0]
    return lrs[places[int(slopes.argmin())]] if len(places) > 1 else math.nan


if __name__ == "__main__":
    main(tyro.cli(Settings))
