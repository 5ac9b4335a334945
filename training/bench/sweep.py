"""Sweeps on Ray Tune: every trial is recorded once, whatever is killed on the way."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import ray.tune
from ray.tune.schedulers import ASHAScheduler

from lrenv.training.bench.database import PolicyDatabase, TrialRecord
from lrenv.training.bench.search import LOST_WORKERS, Search, recorded
from lrenv.training.bench.space import Proposals
from lrenv.training.bench.trial import Trial
from lrenv.training.parallel import ray_cluster
from lrenv.training.progress import progress_bar

Measure = Literal["val_loss", "steps", "seconds"]

_GRACE = 0.25
"""Share of a run before it may be cut short."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What all trials of a sweep have in common.

    Attributes:
        name: Its name in the database; two starts of one sweep share it.
        task: Name of the task.
        task_key: Hash of the task.
        features: Features of the task, by which similar ones are found.
        environment: Versions and data, as the database keeps them.
        total_steps: Length of a run in optimizer steps.
        seed: Seed of every run.
        measure: What is to be least: the final validation loss, or the steps or seconds until the
            target.
        target: Validation loss at which a run ends; none by default.
        max_trials: Trials, those of learned policies left out.
        max_steps: Optimizer steps of all trials together, after which no trial starts.
        max_seconds: Machine time of all trials together, after which no trial starts.
        early_stopping: Cut runs short that do worse than others at the same step (ASHA, Li et al.
            2020).
    """

    name: str
    task: str
    task_key: str
    features: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    total_steps: int
    seed: int = 0
    measure: Measure = "val_loss"
    target: float | None = None
    max_trials: int = 40
    max_steps: int | None = None
    max_seconds: float | None = None
    early_stopping: bool = False

    def uid(self, index: int) -> str:
        """Name of a trial by its number."""
        return hashlib.sha256(f"{self.name}/{index}".encode()).hexdigest()[:20]

    def value(self, record: TrialRecord) -> float:
        """What is to be least, of a trial.

        A run that missed the target costs between one and two times the longest run, the more the
        further its loss is off.
        """
        loss = record.metrics.get("val_loss", math.inf)
        if self.measure == "val_loss" or self.target is None:
            return loss
        if loss <= self.target:
            return float(record.steps if self.measure == "steps" else record.seconds or math.inf)
        most = float(self.total_steps if self.measure == "steps" else 10**6)
        return most * (2.0 - 1.0 / (1.0 + loss - self.target))

    def reached(self, record: TrialRecord) -> bool:
        """Whether a run came to the target."""
        loss = record.metrics.get("val_loss", math.inf)
        return record.status == "done" and self.target is not None and loss <= self.target

    def best(self, records: Sequence[TrialRecord]) -> TrialRecord | None:
        """The best of the runs that came to their end; the earliest of equals."""
        done = [r for r in records if r.status == "done"]
        return min(done, key=lambda r: (self.value(r), r.parameters["index"]), default=None)


def run_sweep(
    train: Callable[[Trial], None],
    sweep: Sweep,
    proposals: Proposals,
    database: PolicyDatabase,
    folder: Path,
    *,
    learned: Sequence[str] = (),
    workers: int = 2,
    ray_address: str | None = None,
) -> list[TrialRecord]:
    """Run what is missing of a sweep.

    A trial whose worker is lost goes on from its checkpoint, as long as ``train`` gives its state;
    one that raises is recorded as failed, with its message, and tried again by the next start.

    Args:
        train: Trains a run, see :class:`lrenv.training.bench.trial.Trial`; sent to the workers.
        sweep: The sweep.
        proposals: What to try.
        database: Where the trials are kept.
        folder: Place of the checkpoints of running trials.
        learned: Learned policies that are tried first, by name or path.
        workers: Trials side by side.
        ray_address: A Ray cluster to use instead of this machine.

    Returns:
        All trials of the sweep, in the order of their numbers.

    Raises:
        InputError: Ray is not there, or the database cannot be used.
    """
    place = folder / "ray"
    with ray_cluster(workers, ray_address), progress_bar() as bar:
        search = Search(sweep, proposals, database, learned)
        line = bar.add_task("Trials", total=sweep.max_trials + len(learned), status="")
        search.show = lambda done, status: bar.update(line, completed=done, status=status)
        search.catch_up()
        if not search.finished:
            _tune(train, sweep, search, place)
    shutil.rmtree(place, ignore_errors=True)
    return recorded(sweep, database)


def _tune(train: Callable[[Trial], None], sweep: Sweep, search: Search, place: Path) -> None:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial has none
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a banner even when told not to
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # functions open files beside them
    scheduler = None
    if sweep.early_stopping:
        scheduler = ASHAScheduler(
            time_attr="step",
            metric="val_loss",
            mode="min",
            max_t=sweep.total_steps,
            grace_period=max(1, round(_GRACE * sweep.total_steps)),
            reduction_factor=2,
        )
    run = ray.tune.with_parameters(_run, train=train, sweep=sweep)
    ray.tune.Tuner(
        ray.tune.with_resources(run, {"cpu": 1}),
        tune_config=ray.tune.TuneConfig(
            search_alg=search, scheduler=scheduler, num_samples=-1, reuse_actors=True
        ),
        run_config=ray.tune.RunConfig(
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"),
            storage_path=str(place.resolve()),
            verbose=0,
            stop=_TooDear(sweep, search.records),
            failure_config=ray.tune.FailureConfig(max_failures=LOST_WORKERS),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=1),
        ),
    ).fit()


def _run(config: dict[str, Any], train: Callable[[Trial], None], sweep: Sweep) -> None:
    """Run a trial in a worker; how it ended is told where its reports do not."""
    trial = None
    try:
        trial = Trial(config["policy"], sweep.total_steps, sweep.seed, sweep.target)
        train(trial)
        end = None if trial.ended else {"status": "ended"}
    except Exception as error:  # a training function may raise anything; the sweep goes on
        end = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    if end:
        ray.tune.report({**end, "seconds": trial.seconds if trial else None})


class _TooDear(ray.tune.Stopper):
    """Ends runs that are on their way to the target longer than the best was."""

    def __init__(self, sweep: Sweep, records: Sequence[TrialRecord]) -> None:
        self._name = {"steps": "step", "seconds": "seconds"}.get(sweep.measure)
        self._least = min((sweep.value(r) for r in records if sweep.reached(r)), default=math.inf)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self._name is None or "reached" not in result:
            return False
        cost = float(result[self._name])
        if result["reached"]:
            self._least = min(self._least, cost)
        return cost >= self._least and not result["reached"]

    def stop_all(self) -> bool:
        return False


def sweep_name(*parts: Any) -> str:
    """A name that two starts of one sweep share, from all that defines it, as JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
