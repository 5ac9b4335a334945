"""How often GeN and Hi-DLR should estimate: ``python benchmarks/gen_interval.py``.

Training tasks of MLPs, convnets, decoders and regressors of 150 to 500 steps, from the usual LRs;
the sources have an estimate every 4 to 8 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.table import Table

from lrenv.adaptive import GeNLR, HiDLR
from lrenv.adaptive.groups import group_parameters
from lrenv.trainees.families import training_task
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import search_experts
from lrenv.training.generalist import summary
from lrenv.training.outcome_ppo import log_ratios
from lrenv.training.peers import usual_peak
from lrenv.training.progress import console, track
from lrenv.training.runfolder import write_json

METHODS = {"GeN": GeNLR, "Hi-DLR": HiDLR}
INTERVALS = (8, 20)
KINDS = ("mlp", "convnet", "decoder", "regressor")


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    tasks: int = 32
    """Training tasks."""
    output: Path = Path("runs/gen_interval.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Train, print the table, write the JSON file."""
    torch.set_num_threads(1)
    tasks = list(filter(_fits, (training_task(i, "balanced") for i in range(10 * settings.tasks))))
    logs: dict[str, dict[int, list[float]]] = {name: {} for name in METHODS}
    for task in track(tasks[: settings.tasks], "Tasks"):
        for name, of_method in logs.items():
            for interval in INTERVALS:
                of_method.setdefault(interval, []).append(log_ratio(task, name, interval))
    table = Table("method", "interval", "mean ratio", "median")
    for name, of_method in logs.items():
        for interval, values in of_method.items():
            found = summary(torch.tensor(values))
            figures = (f"{found[key]:.3f}" for key in ("geometric_mean", "median"))
            table.add_row(name, str(interval), *figures)
    console.print(table)
    write_json(settings.output, logs)


def log_ratio(task: Task, method: str, interval: int) -> float:
    """Log ratio to the tuned expert of a run under a method."""
    trainee, lr = build_trainee(task), usual_peak(task.spec.optimizer)
    groups = list(group_parameters(trainee.model).values())
    if method == "GeN":
        groups = [[param for group in groups for param in group]]
    trainee.optimizer = task.spec.optimizer.build([{"params": group} for group in groups], lr)
    scheduler = METHODS[method](trainee.optimizer, trainee.model, trainee.batch_loss, interval)
    for _ in range(task.spec.total_steps):
        trainee.backward()
        trainee.optimizer.step()
        scheduler.step()
    final = trainee.evaluate("val")[0]
    return float(log_ratios(final, search_experts(task).reference))


def _fits(task: Task) -> bool:
    return task.spec.kind in KINDS and 150 <= task.spec.total_steps <= 500


if __name__ == "__main__":
    main(tyro.cli(Settings))
