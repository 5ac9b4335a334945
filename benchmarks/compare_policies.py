"""One policy against another on tasks new to both: ``python benchmarks/compare_policies.py``.

Trains tasks of each family of training tasks that no policy was trained or selected on under both,
told validation losses and not, and compares the final validation losses: it needs no tuned experts,
so that there can be many tasks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import tyro
from rich.table import Table

from lrenv.errors import InputError
from lrenv.policies.frozen import load_policy
from lrenv.trainees.families import HELD_OUT_NUMBERS, short_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.outcome_ppo import final_losses, log_changes
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.records import bootstrap_interval
from lrenv.training.runfolder import write_json

NUMBERS = HELD_OUT_NUMBERS[340:500]
"""Numbers of the tasks; later ones select policies, earlier ones did or are measured elsewhere."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str
    """Policy, by the name of a shipped one or the path of its card."""
    before: str = "default"
    """Policy to compare it with."""
    families: tuple[str, ...] = (
        "balanced",
        "repeated",
        "rough",
        "picture",
        "table",
        "lasting",
        "photo",
    )
    """Families of the tasks."""
    tasks: int = 60
    """Tasks of each family, at most."""
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
    tasks = {family: _tasks(family, settings) for family in settings.families}
    table = Table("family", "tasks", "losses over those before (95 %)", "median", "lower")
    logs: dict[str, list[list[float]]] = {}
    with Workers(settings.workers) as workers:
        for family, drawn in track(tasks.items(), "Families"):
            runs = list(drawn.values())
            found = log_changes(*(final_losses(actor, runs, workers) for actor in actors))
            logs[family] = found.tolist()
            means = found.mean(1)
            low, high = bootstrap_interval([[value] for value in means.tolist()])
            mean = f"{means.mean().exp():.3f} ({low:.3f}-{high:.3f})"
            lower = f"{(means < 0).float().mean():.0%}"
            table.add_row(family, str(len(drawn)), mean, f"{means.quantile(0.5).exp():.3f}", lower)
    console.print(table)
    numbers = {family: list(drawn) for family, drawn in tasks.items()}
    head = {**asdict(settings), "output": str(settings.output)}
    write_json(settings.output, {"settings": head, "tasks": numbers, "log_ratios": logs})


def _tasks(family: str, settings: Settings) -> dict[int, Task]:
    longest = settings.longest * (10 if family == "lasting" else 1)
    found = dict(islice(short_tasks(NUMBERS, family, longest), settings.tasks))
    if not found:
        raise InputError(
            f"Expected tasks of {family} of at most {longest} steps, got none; raise longest."
        )
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
