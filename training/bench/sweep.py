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
from ray.tune.search import Searcher

from lrenv.policies.lrbench import parse_policy
from lrenv.training.bench.database import PolicyDatabase, TrialRecord
from lrenv.training.bench.space import Proposals
from lrenv.training.bench.trial import LEARNED, Trial
from lrenv.training.parallel import ray_cluster
from lrenv.training.progress import progress_bar

Measure = Literal["val_loss", "steps", "seconds"]

_LOST_WORKERS = 100
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
        """What is to be least, of a trial; where it never reached the target, more than any run."""
        loss = record.metrics.get("val_loss", math.inf)
        if self.measure == "val_loss" or self.target is None:
            return loss
        if loss <= self.target:
            return float(record.steps if self.measure == "steps" else record.seconds or math.inf)
        most = float(self.total_steps if self.measure == "steps" else 10**6)
        return most * (1.0 + loss / self.target)

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
    one that raises is recorded as failed, with its message.

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
        search = _Search(sweep, proposals, database, learned)
        line = bar.add_task("Trials", total=sweep.max_trials + len(learned), status="")
        search.show = lambda done, status: bar.update(line, completed=done, status=status)
        search.catch_up()
        if not search.finished:
            _tune(train, sweep, search, place)
    shutil.rmtree(place, ignore_errors=True)
    return _recorded(sweep, database)


def _tune(train: Callable[[Trial], None], sweep: Sweep, search: _Search, place: Path) -> None:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial has none
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a banner even when told not to
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
            stop=_TooDear(sweep),
            failure_config=ray.tune.FailureConfig(max_failures=_LOST_WORKERS),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=1),
        ),
    ).fit()


def _run(config: dict[str, Any], train: Callable[[Trial], None], sweep: Sweep) -> None:
    """Run a trial in a worker."""
    try:
        train(Trial(config["policy"], sweep.total_steps, sweep.seed, sweep.target))
    except Exception as error:  # a training function may raise anything; the sweep goes on
        message = f"{type(error).__name__}: {error}"
        ray.tune.report({"status": "failed", "error": message, "step": 0})


class _TooDear(ray.tune.Stopper):
    """Ends runs that are on their way to the target longer than the best was."""

    def __init__(self, sweep: Sweep) -> None:
        self._name = {"steps": "step", "seconds": "seconds"}.get(sweep.measure)
        self._least = math.inf

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self._name is None or self._name not in result:
            return False
        cost = float(result[self._name])
        if result["reached"]:
            self._least = min(self._least, cost)
        return cost >= self._least and not result["reached"]

    def stop_all(self) -> bool:
        return False


class _Search(Searcher):
    """Proposes what is missing of a sweep to Ray Tune, and records what comes back."""

    def __init__(
        self,
        sweep: Sweep,
        proposals: Proposals,
        database: PolicyDatabase,
        learned: Sequence[str],
    ) -> None:
        super().__init__(metric="val_loss", mode="min")
        self._sweep, self._proposals, self._database = sweep, proposals, database
        self._learned = list(learned)
        self._open: dict[str, tuple[int, str, dict[str, Any]]] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._next = -len(self._learned)
        self.records: list[TrialRecord] = []
        self.show: Callable[[int, str], object] = lambda done, status: None

    @property
    def finished(self) -> bool:
        """Whether no trial is left to start."""
        records = self.records
        steps, seconds = (sum(getattr(r, k) or 0 for r in records) for k in ("steps", "seconds"))
        return (
            self._next >= self._sweep.max_trials
            or steps >= (self._sweep.max_steps or math.inf)
            or seconds >= (self._sweep.max_seconds or math.inf)
        )

    def catch_up(self) -> None:
        """Take in the trials that are recorded already."""
        self.records = _recorded(self._sweep, self._database)
        for record in self.records:
            self._learn(record)
        self._skip()
        self._show()

    def suggest(self, trial_id: str) -> Any:
        """The next missing trial, or Ray's mark of the end."""
        index = self._next
        proposed: tuple[str, dict[str, Any]] | None = None
        if not self.finished:
            proposed = (
                (f"{LEARNED}{self._learned[index]}", {})
                if index < 0
                else self._proposals.propose(index)
            )
        if proposed is None:
            self._next = self._sweep.max_trials
            return Searcher.FINISHED
        self._open[trial_id] = index, *proposed
        self._next += 1
        self._skip()
        return {"policy": proposed[0]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a report; a trial that went on from a checkpoint repeats some."""
        rows = self._rows.setdefault(trial_id, [])
        rows[:] = [row for row in rows if row["step"] < result["step"]]
        rows.append(result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a trial."""
        if trial_id not in self._open:
            return
        if result and "step" in result:
            self.on_trial_result(trial_id, result)
        record = self._record(*self._open.pop(trial_id), self._rows.pop(trial_id, []), error)
        self._database.add([record])
        self.records.append(record)
        self._learn(record)
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """What Ray keeps for a restart of its own: nothing, the database has it all."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """See :meth:`__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See :meth:`__getstate__`."""

    def _skip(self) -> None:
        known = {record.parameters["index"] for record in self.records}
        known |= {index for index, _, _ in self._open.values()}
        while self._next in known:
            self._next += 1

    def _learn(self, record: TrialRecord) -> None:
        index = record.parameters["index"]
        if index >= 0:
            value = self._sweep.value(record)
            good = record.status in ("done", "stopped") and math.isfinite(value)
            self._proposals.learn(index, record.parameters["drawn"], value if good else None)

    def _show(self) -> None:
        best = self._sweep.best(self.records)
        text = f"best {self._sweep.value(best):.5g}" if best else ""
        self.show(len(self.records), text)

    def _record(
        self,
        index: int,
        policy: str,
        drawn: dict[str, Any],
        rows: list[dict[str, Any]],
        lost: bool,
    ) -> TrialRecord:
        sweep = self._sweep
        last: dict[str, Any] = (
            rows[-1] if rows else {"status": "failed", "error": "It reported nothing."}
        )
        status, error = last["status"], last.get("error", "")
        if lost:
            status, error = "failed", f"Its worker was lost {_LOST_WORKERS} times."
        reports = [row for row in rows if "val_loss" in row]
        if status == "done" and last["step"] < sweep.total_steps and not last["reached"]:
            status = "stopped"
        metrics = {k.removeprefix("metric/"): v for k, v in last.items() if k[:7] == "metric/"}
        if reports and math.isfinite(reports[-1]["val_loss"]):
            metrics["val_loss"] = reports[-1]["val_loss"]
        names = ("step", "val_loss", "train_loss", "lr")
        learned = policy.startswith(LEARNED)
        return TrialRecord(
            uid=sweep.uid(index),
            task=sweep.task,
            task_key=sweep.task_key,
            features=dict(sweep.features),
            policy_kind="learned" if learned else "lrbench",
            policy=policy.removeprefix(LEARNED) if learned else str(parse_policy(policy)),
            parameters={"index": index, "drawn": drawn},
            seed=sweep.seed,
            sweep=sweep.name,
            status=status,
            error=error,
            steps=int(last.get("step", 0)),
            seconds=last.get("seconds"),
            metrics=metrics,
            curve={k: [_finite(row[k]) for row in reports] for k in names},
            environment=dict(sweep.environment),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _recorded(sweep: Sweep, database: PolicyDatabase) -> list[TrialRecord]:
    records = database.trials(sweep=sweep.name, curves=True)
    return sorted(records, key=lambda record: record.parameters["index"])


def sweep_name(*parts: Any) -> str:
    """A name that two starts of one sweep share, from all that defines it, as JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
