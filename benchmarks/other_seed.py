"""What is in reach without a search: ``python benchmarks/other_seed.py``.

Trains tasks that no shipped policy was trained or selected on under a policy, told no validation
losses, and under the expert tuned on another seed of the same task: what tuning carries over
to the next run. Both are compared with the expert tuned on the very seed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
import tyro
from rich.table import Table

from lrenv.policies.frozen import load_policy
from lrenv.policies.network import Head
from lrenv.trainees.families import HELD_OUT_NUMBERS, short_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.compare import OtherSeedPart
from lrenv.training.expert_search import search_experts
from lrenv.training.generalist import CUT, cut_means, summary
from lrenv.training.outcome_ppo import evaluate_actor
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.runfolder import write_json

NUMBERS = HELD_OUT_NUMBERS[150:400]
"""Numbers of the tasks; later ones select policies, earlier ones did or are measured elsewhere."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str = "default"
    """Policy, by the name of a shipped one or the path of its card."""
    families: tuple[str, ...] = ("balanced", "repeated", "rough", "picture", "table")
    """Families of the tasks."""
    tasks: int = 24
    """Tasks of each family, at most."""
    longest: int = 500
    """Longest runs, in optimizer steps."""
    output: Path = Path("runs/other_seed.json")
    """Where the figures go."""
    workers: int = 1
    """Tasks side by side."""


def main(settings: Settings) -> None:
    """Train, print the table, write the JSON file."""
    torch.set_num_threads(1)
    actor = load_policy(settings.policy).actor
    table = Table("family", "method", "mean ratio", f"cut at {CUT}", "median", "worst")
    found: dict[str, dict[str, list[float | None]]] = {}
    with Workers(settings.workers) as workers:
        for family in track(settings.families, "Families"):
            tasks = _tasks(family, settings)
            jobs = [(task,) for task in tasks.values()]
            logs = torch.tensor(list(workers.starmap(log_ratios_of, jobs, actor)))
            found[family] = {"numbers": list(tasks)}
            for method, row in zip(("policy", "expert tuned on another seed"), logs.T, strict=True):
                found[family][method] = [x if math.isfinite(x) else None for x in row.tolist()]
                table.add_row(family, method, *_figures(row))
    console.print(table)
    head = {**asdict(settings), "output": str(settings.output)}
    write_json(settings.output, {"settings": head, "log_ratios": found})


def log_ratios_of(task: Task, actor: Head) -> tuple[float, float]:
    """Log ratios of the policy, and of the expert tuned on another seed."""
    policy = float(evaluate_actor(actor, [task])[0, 0])
    other = OtherSeedPart().run(task, "", search_experts(task))[0].ratio
    return policy, math.inf if other is None else math.log(other)


def _tasks(family: str, settings: Settings) -> dict[int, Task]:
    return dict(islice(short_tasks(NUMBERS, family, settings.longest), settings.tasks))


def _figures(logs: torch.Tensor) -> list[str]:
    known = summary(logs)
    cut = cut_means(logs).item()
    figures = (known["geometric_mean"], cut, known["median"], known["worst_finite"])
    return [f"{figure:.3f}" for figure in figures]


if __name__ == "__main__":
    main(tyro.cli(Settings))
