"""Policies on tasks unlike those they were trained on: ``python benchmarks/unseen_suite.py``.

Trainees are those of ``lrenv.trainees.unseen``: MLPs on Fashion-MNIST and on tables, convolutional
networks and autoencoders on digits, decoders on source code, MLPs under RMSprop; 24 in all, each on
3 seeds, beside experts and the tuned expert (39 runs of grid search a trainee and seed, cached). A
stopped benchmark goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from lrenv.files import make_folder
from lrenv.policies.frozen import load_policy
from lrenv.trainees.unseen import unseen_tasks
from lrenv.training.evaluate import collect_results, compare_all, publish
from lrenv.training.parallel import Workers


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policies: tuple[str, ...] = ("default",)
    """Policies, by name or path."""
    hints: tuple[float, ...] = (1e-3,)
    """LRs that the jobs start with."""
    seeds: int = 3
    """Seeds of each trainee."""
    heavy: bool = False
    """Add the trainees whose tuned experts take hours."""
    output: Path = Path("runs/unseen_suite")
    """Where results and report go."""
    workers: int = 1
    """Comparisons side by side, by Ray if more than one; results stay the same."""
    ray_address: str | None = None
    """Ray cluster to use instead, by auto or host:port; needs lrenv on every machine of it."""


def main(settings: Settings) -> None:
    """Run what is not there yet, and write ``results.json`` and ``report.html``."""
    torch.set_num_threads(1)
    folder = make_folder(settings.output)
    jobs = [
        (name, replace(task, seed=seed))
        for name, task in unseen_tasks(settings.heavy).items()
        for seed in range(settings.seeds)
    ]
    policies = [load_policy(name) for name in settings.policies]
    with Workers(settings.workers, settings.ray_address) as workers:
        records = compare_all(jobs, policies, settings.hints, None, folder, workers)
    tasks = [task for _, task in jobs]
    publish(collect_results("Schedules on unseen tasks", asdict(settings), tasks, records), folder)


if __name__ == "__main__":
    main(tyro.cli(Settings))
