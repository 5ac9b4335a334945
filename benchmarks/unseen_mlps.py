"""The default policy on 24 unseen MLPs: ``python benchmarks/unseen_mlps.py``.

Trainees are the held-out family of ``lrenv.trainees.families``: full-size MNIST images, widths,
depths, optimizer settings and run lengths outside the training family. Each is trained on 3 seeds,
from LR hints of 1e-5 to 1e-1, in a plain torch loop under ``LearnedLR``, beside experts and the
tuned expert (39 runs of grid search a trainee and seed, cached). A stopped benchmark goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from lrenv.policies.frozen import load_policy
from lrenv.trainees.families import Task, held_out_tasks, load_data
from lrenv.training.evaluate import RunRecord, collect_results, compare, publish, with_seed
from lrenv.training.progress import track
from lrenv.training.runfolder import make_folder, read_json, write_json


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


def main(settings: Settings) -> None:
    """Run what is not there yet, and write ``results.json`` and ``report.html``."""
    torch.set_num_threads(1)
    folder = make_folder(settings.output)
    policies = [load_policy(name) for name in settings.policies]
    stamp = "-".join(policy.card["sha256"][:12] for policy in policies)
    records: list[RunRecord] = []
    jobs = list(_jobs(settings.seeds))
    for name, task in track(jobs, "Unseen MLPs"):
        path = folder / stamp / f"{task.key()}.json"
        if not path.exists():
            found = compare(task, name, policies, settings.hints, curves=task.seed == 0)
            write_json(path, [asdict(record) for record in found])
        records += [RunRecord(**row) for row in read_json(path)]
    data = load_data(jobs[0][1].data)
    results = {
        "format": 1,
        "title": "Learned schedules on unseen MLPs",
        "settings": {"hints": list(settings.hints), "seeds": settings.seeds, "trainees": 24},
        "data": {"name": data.name, "note": data.note},
        **collect_results(records),
    }
    publish(results, folder)


def _jobs(seeds: int) -> Iterator[tuple[str, Task]]:
    for task in held_out_tasks("mnist"):
        spec = task.spec
        shape = "-".join(map(str, spec.hidden))
        name = f"{shape} {spec.activation}, {spec.optimizer.name} {spec.optimizer.momentum:g}"
        name += f", batch {spec.batch_size}, {spec.total_steps} steps"
        for seed in range(seeds):
            yield name, with_seed(task, seed)


if __name__ == "__main__":
    main(tyro.cli(Settings))
