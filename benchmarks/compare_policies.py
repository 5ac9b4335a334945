"""One policy against another on tasks new to both: ``python benchmarks/compare_policies.py``.

Trains tasks of each family of training tasks that no policy was trained or selected on under both,
told validation losses and not, and compares the final validation losses: it needs no tuned experts,
so that there can be many tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table

from lrenv.policies.frozen import load_policy
from lrenv.trainees.families import HELD_OUT_NUMBERS, training_task
from lrenv.trainees.tasks import Task
from lrenv.training.outcome_ppo import final_losses, log_ratios
from lrenv.training.parallel import Workers
from lrenv.training.progress import console
from lrenv.training.records import bootstrap_interval
from lrenv.training.runfolder import write_json

NUMBERS = HELD_OUT_NUMBERS[128:500]
"""Numbers of the tasks; later ones select policies, earlier ones did or are measured elsewhere."""

CUT = 1.0
"""What a log ratio counts as at most in the mean, and at least with a minus."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str
    """Policy, by the name of a shipped one or the path of its card."""
    before: str = "default"
    """Policy to compare it with."""
    families: tuple[str, ...] = ("balanced", "repeated", "rough", "picture", "table", "lasting")
    """Families of the tasks."""
    tasks: int = 60
    """Tasks of each family."""
    longest: int = 800
    """Longest runs, in optimizer steps; of the family lasting, ten times as long."""
    output: Path = Path("runs/compare_policies.json")
    """Where the figures go."""
    workers: int = 1
    """Tasks side by side."""


def main(settings: Settings) -> None:
    """Train, print the table, write the JSON file."""
    torch.set_num_threads(1)
    actors = [load_policy(name).actor for name in (settings.policy, settings.before)]
    table = Table("family", "tasks", "losses over those before (95 %)", "median", "lower")
    results: dict[str, Any] = {"policy": settings.policy, "before": settings.before}
    with Workers(settings.workers) as workers:
        for family in settings.families:
            tasks = _tasks(family, settings)
            after, before = (final_losses(actor, tasks, workers) for actor in actors)
            logs = (log_ratios(after, 1.0) - log_ratios(before, 1.0)).nan_to_num(0.0)
            results[family] = {"tasks": len(tasks), "log_ratios": logs.tolist()}
            cut = logs.clamp(-CUT, CUT).mean(1)
            low, high = bootstrap_interval([[value] for value in cut.tolist()])
            mean = f"{math.exp(cut.mean()):.3f} ({low:.3f}-{high:.3f})"
            lower = f"{(cut < 0).float().mean():.0%}"
            table.add_row(family, str(len(tasks)), mean, f"{cut.median().exp():.3f}", lower)
    console.print(table)
    write_json(settings.output, results)


def _tasks(family: str, settings: Settings) -> list[Task]:
    longest = settings.longest * (10 if family == "lasting" else 1)
    drawn = (training_task(number, family) for number in NUMBERS)
    short = (task for task in drawn if task.spec.total_steps <= longest)
    return list(islice(short, settings.tasks))


if __name__ == "__main__":
    main(tyro.cli(Settings))
