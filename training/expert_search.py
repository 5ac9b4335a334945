"""The tuned expert of a task: grid search over expert schedules and peak learning rates."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.files import cache_folder
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.progress import track
from lrenv.training.runfolder import read_json, write_json

N_PEAKS = 13
FLOOR = 0.01
"""Least loss that enters a ratio: on data that can be learned by heart, less is rounding."""

_FORMAT = 1


@dataclass(frozen=True)
class SearchResult:
    """Final losses of every expert and peak of the grid on one task.

    Attributes:
        kinds: Expert of each run of the grid.
        peaks: Its peak LR.
        val_loss: Its final validation loss; infinite if it diverged.
        train_loss: Its mean training loss over the run.
    """

    kinds: tuple[str, ...]
    peaks: tuple[float, ...]
    val_loss: tuple[float, ...]
    train_loss: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the tuned expert in the grid."""
        return min(range(len(self.val_loss)), key=self.val_loss.__getitem__)

    @property
    def reference(self) -> float:
        """Final validation loss of the tuned expert."""
        return self.val_loss[self.best]

    def best_around(self, kind: str, peak: float, n_peaks: int) -> int:
        """Index of an expert's best run at some peaks: every other one of the grid around a given.

        Args:
            kind: The expert.
            peak: The peak in the middle, or the nearest to it that has as many on both sides.
            n_peaks: How many peaks, an odd number; at most half of the grid's.
        """
        runs = sorted(
            (i for i, known in enumerate(self.kinds) if known == kind), key=self.peaks.__getitem__
        )
        reach = n_peaks - 1
        middles = range(reach, len(runs) - reach)
        middle = min(middles, key=lambda place: abs(math.log(self.peaks[runs[place]] / peak)))
        few = runs[middle - reach : middle + reach + 1 : 2]
        return min(few, key=self.val_loss.__getitem__)

    def log_schedule(self, total_steps: int, sharpness: float = 0.02) -> Tensor:
        """Log LR at every step, averaged over the experts close to the best, ``(total_steps,)``.

        Losses below ``FLOOR`` count as it. An expert whose log loss is worse by ``sharpness``
        weighs e times less.
        """
        losses = torch.tensor(self.val_loss, dtype=torch.float64).clamp_min(FLOOR)
        weights = torch.softmax(-torch.log(losses) / sharpness, 0)
        total = torch.zeros(total_steps, dtype=torch.float64)
        for kind, peak, weight in zip(self.kinds, self.peaks, weights.tolist(), strict=True):
            if weight > 0.01:
                rates = torch.tensor(schedule(kind, total_steps, peak), dtype=torch.float64)
                total += weight * torch.log(rates.clamp_min(1e-3 * peak))
        return (total / weights[weights > 0.01].sum()).float()


def peak_grid(optimizer: OptimizerSpec) -> list[float]:
    """Peaks over four decades in thirds of a decade, around the optimizer's usual range."""
    lowest = 1e-5 if optimizer.name != "sgd" else 1e-3 * (1.0 - optimizer.momentum)
    return [lowest * 10 ** (k / 3) for k in range(N_PEAKS)]


def search_experts(task: Task, cache: Path | None = None) -> SearchResult:
    """Run the grid on a task, or read its result from the cache.

    Args:
        task: The task.
        cache: Folder of earlier results; :func:`expert_cache` by default.
    """
    return _read(task, cache) or _keep(task, cache, _run_grid(task, cache))


def search_all(tasks: Sequence[Task], workers: Workers = IN_PROCESS) -> list[SearchResult]:
    """Search the experts of many tasks side by side; the cache is that of this machine."""
    known = [_read(task, None) for task in tasks]
    missing = [
        (load_data(task.data).name, task)
        for task, result in zip(tasks, known, strict=True)
        if result is None
    ]
    found = workers.starmap(_search_on, missing)
    return [
        result or _keep(task, None, next(found))
        for task, result in track(list(zip(tasks, known, strict=True)), "Tuned experts")
    ]


def check_data(task: Task, name: str) -> None:
    """Check that a worker, maybe on another machine, trains a task on the caller's data.

    Raises:
        InputError: The data set of the task has another name here.
    """
    found = load_data(task.data).name
    if found != name:
        raise InputError(
            f"Expected the data {name} on every machine, got {found} on {platform.node()}; copy "
            "the folder of lrenv's data there."
        )


def expert_cache() -> Path:
    """Folder of search results: ``$LRENV_CACHE/experts`` or ``~/.cache/lrenv/experts``."""
    return cache_folder() / "experts"


def _read(task: Task, cache: Path | None) -> SearchResult | None:
    path, head = _entry(task, cache)
    if path.exists():
        data = read_json(path)
        known = isinstance(data, dict) and {key: data.pop(key, None) for key in head}
        if known == json.loads(json.dumps(head)):
            return SearchResult(**{k: tuple(v) for k, v in data.items()})
    return None


def _keep(task: Task, cache: Path | None, result: SearchResult) -> SearchResult:
    path, head = _entry(task, cache)
    write_json(path, {**head, **asdict(result)})
    return result


def _entry(task: Task, cache: Path | None) -> tuple[Path, dict[str, Any]]:
    # "mnist" stands for other data on a machine without a network.
    head = {"format": _FORMAT, "task": {**task.to_json(), "dataset": load_data(task.data).name}}
    return (cache or expert_cache()) / f"{task.key()}.json", head


def _search_on(data: str, task: Task) -> SearchResult:
    check_data(task, data)
    return search_experts(task)  # In the cache of this machine too, should the caller be killed.


def _run_grid(task: Task, cache: Path | None) -> SearchResult:
    grid = [(kind, peak) for kind in TUNED_KINDS for peak in peak_grid(task.spec.optimizer)]
    rates = [schedule(kind, task.spec.total_steps, peak) for kind, peak in grid]
    entry, head = _entry(task, cache)
    finals = _train_in_parts(task, rates, entry.with_stem(f"{entry.stem}-part"), head)
    kinds, peaks = zip(*grid, strict=True)
    result = SearchResult(kinds, peaks, *zip(*finals, strict=True))
    if not math.isfinite(result.reference):
        raise InputError(
            f"Expected at least one expert to train {task.spec}, but all of them diverged; "
            "check the data."
        )
    return result


def _train_in_parts(
    task: Task, rates: Sequence[Sequence[float]], path: Path, head: dict[str, Any]
) -> list[tuple[float, float]]:
    """Final validation and mean training loss under each schedule; a file keeps what is done."""
    size = task.spec.lockstep or len(rates)
    kept = read_json(path) if path.exists() else {}
    known = {key: kept.get(key) for key in head} == json.loads(json.dumps(head))
    done = [(val, train) for val, train in kept["done"]] if known else []
    while len(done) < len(rates):
        runs = run_schedules(task, rates[len(done) : len(done) + size])
        losses = torch.stack([runs.trainee.evaluate("val")[0], runs.losses.mean(1)], 1)
        del runs  # The next ones need the memory.
        done += [(v, t) for v, t in torch.nan_to_num(losses, torch.inf, torch.inf).tolist()]
        if len(done) < len(rates):
            write_json(path, {**head, "done": done})
    path.unlink(missing_ok=True)
    return done


@dataclass(frozen=True)
class ScheduledRuns:
    """Runs of a task under given schedules.

    Attributes:
        trainee: The trained runs.
        losses: Training loss of every step, ``(runs, total_steps)``.
        watched: Validation losses behind the steps that were asked for, ``(runs, len(watch))``.
    """

    trainee: BatchedTrainee
    losses: Tensor
    watched: Tensor


def run_schedules(
    task: Task, schedules: Sequence[Sequence[float]] | Tensor, watch: Sequence[int] = ()
) -> ScheduledRuns:
    """Train one run of a task under each schedule, in lockstep and all with the same seed.

    Args:
        task: The task.
        schedules: LR of every step, for each run, ``(runs, total_steps)``; at most as many runs as
            the task's specification lets train in lockstep.
        watch: Numbers of steps, rising, behind which the validation loss is taken.
    """
    rates = torch.as_tensor(schedules)
    n_runs = len(rates)
    trainee = BatchedTrainee([task.spec] * n_runs, load_data(task.data), [task.seed] * n_runs)
    losses, vals = [], [torch.empty(n_runs, 0)]
    for step in range(task.spec.total_steps):
        losses.append(trainee.backward())
        trainee.update(rates[:, step])
        if step + 1 in watch:
            vals.append(trainee.evaluate("val")[0][:, None])
    return ScheduledRuns(trainee, torch.stack(losses, 1), torch.cat(vals, 1))
