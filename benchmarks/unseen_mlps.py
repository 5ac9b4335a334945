"""The default policy on 24 unseen MLPs: ``python benchmarks/unseen_mlps.py``.

Trainees are the held-out family of ``lrenv.trainees.families``: full-size MNIST images, which no
training task has; widths, depths, optimizer settings and run lengths lie outside the training
families in part. Each is trained on 3 seeds, from LR hints of 1e-5 to 1e-1, in a plain torch loop
under ``LearnedLR``, beside experts and the tuned expert (39 runs of grid search a trainee and seed,
cached). A stopped benchmark goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from lrenv.files import make_folder
from lrenv.policies.frozen import load_policy
from lrenv.trainees.families import held_out_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.evaluate import collect_results, compare_all, publish
from lrenv.training.parallel import Workers


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policies: tuple[str, ...] = ("default",)
    """Policies, by name or path."""
    hints: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """LRs that the jobs start with."""
    seeds: int = 3
    """Seeds of each trainee."""
    output: Path = Path("runs/unseen_mlps")
    """Where results and report go."""
    workers: int = 1
    """Comparisons side by side, by Ray if more than one; results stay the same."""
    ray_address: str | None = None
    """Ray cluster to use instead, by auto or host:port; needs lrenv on every machine of it."""


def main(settings: Settings) -> None:
    """Run what is not there yet, and write ``results.json`` and ``report.html``."""
    torch.set_num_threads(1)
    folder = make_folder(settings.output)
    jobs = list(_jobs(settings.seeds))
    policies = [load_policy(name) for name in settings.policies]
    with Workers(settings.workers, settings.ray_address) as workers:
        records = compare_all(jobs, policies, settings.hints, None, folder, workers)
    tasks = [task for _, task in jobs]
    publish(
        collect_results("Learned schedules on unseen MLPs", asdict(settings), tasks, records),
        folder,
    )


def _jobs(seeds: int) -> Iterator[tuple[str, Task]]:
    for task in held_out_tasks("mnist"):
        spec = task.spec
        shape = "-".join(map(str, spec.hidden))
        name = f"{shape} {spec.activation}, {spec.optimizer.name} {spec.optimizer.momentum:g}"
        name += f", batch {spec.batch_size}, {spec.total_steps} steps"
        for seed in range(seeds):
            yield name, replace(task, seed=seed)


if __name__ == "__main__":
    main(tyro.cli(Settings))
