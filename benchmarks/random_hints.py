"""Whether runs diverge from random LRs: ``python benchmarks/random_hints.py``.

The unseen trainees, each with many seeds and an LR between 1e-8 and 10, under ``LearnedLR`` with
nothing else given. A run has diverged if its final validation loss is not finite, and has learned
nothing if it is no lower than before the first step.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table

from lrenv.files import make_folder
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.tasks import Task
from lrenv.trainees.unseen import unseen_tasks
from lrenv.training.methods import learned_lr
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.runfolder import check_settings, read_json, write_json


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str = "default"
    """Policy, by name or path."""
    seeds: int = 21
    """Runs of each trainee, each with a seed and a hint of its own."""
    output: Path = Path("runs/random_hints")
    """Run folder; a benchmark that was stopped goes on from there."""
    workers: int = 1
    """Runs side by side."""


def main(settings: Settings) -> None:
    """Train, print the table, write the JSON file."""
    torch.set_num_threads(1)
    folder = make_folder(settings.output)
    check_settings(folder, settings, free={"output", "workers"})
    runs: list[dict[str, Any]] = []
    with Workers(settings.workers) as workers:
        for name, task in track(list(unseen_tasks().items()), "Trainees"):
            path = folder / f"{name.replace(' ', '-')}.json"
            if not path.exists():
                jobs = [(name, replace(task, seed=seed)) for seed in range(settings.seeds)]
                write_json(path, list(workers.starmap(run, jobs, settings.policy)))
            runs += read_json(path)
    table = Table("family", "runs", "diverged", "learned nothing")
    families = dict.fromkeys(row["task"].rpartition(" ")[0] for row in runs)
    for family in (*families, ""):
        rows = [row for row in runs if row["task"].startswith(family)]
        counts = [sum(row[key] for row in rows) for key in ("diverged", "learned_nothing")]
        table.add_row(family or "all", str(len(rows)), *map(str, counts))
    console.print(table)
    write_json(folder / "results.json", runs)


def run(name: str, task: Task, policy: str) -> dict[str, Any]:
    """Train a task from a random hint; returns how it ended."""
    hint = math.exp(random.Random(f"{name}-{task.seed}").uniform(math.log(1e-8), math.log(10)))
    trainee = build_trainee(task)
    before = float(trainee.evaluate("val")[0])
    for group in trainee.optimizer.param_groups:
        group["lr"] = hint
    scheduler = learned_lr(trainee, policy)
    for _ in range(task.spec.total_steps):
        loss = trainee.backward()
        trainee.optimizer.step()
        scheduler.step(loss)
    after = float(trainee.evaluate("val")[0])
    ended = {"before": before, "after": after if math.isfinite(after) else None}
    ended |= {"diverged": not math.isfinite(after), "learned_nothing": not after < before}
    return {"task": name, "seed": task.seed, "hint": hint, **ended}


if __name__ == "__main__":
    main(tyro.cli(Settings))
