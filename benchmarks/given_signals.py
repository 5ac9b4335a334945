"""What a policy makes of signals that a job may leave out: ``python benchmarks/given_signals.py``.

Trains tasks of the family ``balanced`` that no shipped policy was trained or selected on, once for
each of the signals left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.table import Table
from torch import Tensor

from lrenv.observation import FEATURES, columns_of
from lrenv.policies.frozen import load_policy
from lrenv.policies.network import Head
from lrenv.trainees.families import short_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import search_all, search_experts
from lrenv.training.generalist import CUT, cut_means, summary
from lrenv.training.outcome_ppo import log_ratios
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.rollout import NetworkChoice, roll_out
from lrenv.training.runfolder import write_json

FAMILY = "balanced"
TASKS = range(1064, 1128)
"""Numbers of the tasks; those up to 1,063 trained or selected policies."""

LONGEST = 1300
"""Longest runs, in optimizer steps."""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "validation loss": ("val_",),
    "epochs": ("epoch",),
    "validation loss and epochs": ("val_", "epoch"),
    "optimizer": ("optimizer_",),
    "all of them": ("val_", "epoch", "optimizer_"),
}
"""What is left out, by the beginnings of features' names."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str = "default"
    """Policy, by the name of a shipped one or the path of its card."""
    output: Path = Path("runs/given_signals.json")
    """Where the figures go."""
    workers: int = 1
    """Tasks side by side."""


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON file."""
    torch.set_num_threads(1)
    actor = load_policy(settings.policy).actor
    drawn = dict(short_tasks(TASKS, FAMILY, LONGEST))
    tasks = list(drawn.values())
    with Workers(settings.workers) as workers:
        search_all(tasks, workers)
        found = workers.starmap(log_ratios_of, [(task,) for task in tasks], actor)
        ratios = torch.stack([next(found) for _ in track(tasks, "Tasks")])
    table = Table("left out", "mean ratio", f"cut at {CUT}", "median", "worst", "diverged")
    for name, column in zip(LEFT_OUT, ratios.unbind(1), strict=True):
        figures = summary(column)
        cut, worst = cut_means(column), figures["worst_finite"]
        shown = (figures["geometric_mean"], cut, figures["median"], worst)
        table.add_row(name, *(f"{value:.3f}" for value in shown), str(figures["diverged"]))
    console.print(table)
    by_name = zip(LEFT_OUT, ratios.T.tolist(), strict=True)
    head = {"policy": settings.policy, "family": FAMILY, "tasks": list(drawn)}
    write_json(settings.output, {**head, "log_ratios": dict(by_name)})


def log_ratios_of(task: Task, actor: Head) -> Tensor:
    """Log ratios to the tuned expert of runs of a task, one for each of ``LEFT_OUT``."""
    mask = torch.ones(len(LEFT_OUT), len(FEATURES))
    for row, starts in zip(mask, LEFT_OUT.values(), strict=True):
        row[columns_of(*starts)] = 0.0
    final = roll_out(task, len(mask), NetworkChoice(actor), mask).final
    return log_ratios(final, search_experts(task).reference)


if __name__ == "__main__":
    main(tyro.cli(Settings))
