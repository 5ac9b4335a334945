"""What a sweep adds to its trials: ``python benchmarks/trial_overhead.py``.

The same runs of MNIST's MLP, about ten seconds each, two side by side: as trials of a sweep, and in
plain loops of two processes. Each is timed with few and with many runs, and the difference is what
one more run takes, so that the start of Ray and of the processes does not count; what that takes is
told apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro

from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.space import SearchSpace, proposals
from lrenv.training.bench.sweep import Sweep, run_sweep
from lrenv.training.bench.trial import REPORTS, TrainTrainee
from lrenv.training.progress import console
from lrenv.training.runfolder import write_json

WORKERS = 2


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    total_steps: int = 10_000
    """Length of a run in optimizer steps; some ten seconds on one core."""
    few: int = 2
    """Runs of the short measurement."""
    many: int = 8
    """Runs of the long measurement."""
    output: Path = Path("runs/trial_overhead.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Measure, print, and write the JSON file."""
    task = build_task("mlp-mnist", settings.total_steps, OptimizerSpec("adam"))
    found = {}
    for name, measure in {"sweep": _sweep, "plain": _plain}.items():
        few, many = (_timed(measure, task, n) for n in (settings.few, settings.many))
        each = (many - few) / (settings.many - settings.few) * WORKERS
        found[name] = {"seconds_a_run": each, "start": few - settings.few / WORKERS * each}
    found["ratio"] = found["sweep"]["seconds_a_run"] / found["plain"]["seconds_a_run"]
    write_json(settings.output, found)
    console.print(found)


def _timed(measure: Callable[[Task, int], None], task: Task, runs: int) -> float:
    began = time.perf_counter()
    measure(task, runs)
    return time.perf_counter() - began


def _sweep(task: Task, runs: int) -> None:
    space = SearchSpace(("FIX",), 1e-4, 1e-2, task.spec.total_steps)
    sweep = Sweep(
        name="overhead",
        task="mlp-mnist",
        task_key=task.key(),
        total_steps=task.spec.total_steps,
        max_trials=runs,
    )
    walked = proposals(space, "random", 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with PolicyDatabase(place / "policies.sqlite") as database:
            train = TrainTrainee(task)
            run_sweep(train, sweep, walked, database, place, workers=WORKERS)


def _plain(task: Task, runs: int) -> None:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        list(pool.map(_train, [task] * runs))


def _train(task: Task) -> float:
    """A plain loop with the validations that a trial has."""
    torch.set_num_threads(1)
    trainee = build_trainee(task)
    every = task.spec.total_steps // REPORTS
    loss = torch.zeros(1)
    for step in range(1, task.spec.total_steps + 1):
        trainee.backward()
        trainee.update(torch.tensor([1e-3]))
        if step % every == 0:
            loss = trainee.evaluate("val")[0]
    trainee.evaluate("test")
    return float(loss)


if __name__ == "__main__":
    main(tyro.cli(Settings))
