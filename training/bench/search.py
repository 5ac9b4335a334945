"""What a sweep proposes to Ray Tune, and the records of what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from lrenv.policies.lrbench import parse_policy
from lrenv.training.bench.database import PolicyDatabase, TrialRecord
from lrenv.training.bench.space import Proposals
from lrenv.training.bench.trial import LEARNED

if TYPE_CHECKING:
    from lrenv.training.bench.sweep import Sweep

LOST_WORKERS = 100
"""Workers that a trial may lose before it counts as failed."""


class Search(Searcher):
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
            or _reached(steps, self._sweep.max_steps)
            or _reached(seconds, self._sweep.max_seconds)
        )

    def catch_up(self) -> None:
        """Take in the trials that are recorded already; those that failed are tried again."""
        records = recorded(self._sweep, self._database)
        self.records = [record for record in records if record.status != "failed"]
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
        rows[:] = [row for row in rows if _place(row) < _place(result)]
        rows.append(result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a trial."""
        if trial_id not in self._open:
            return
        if result and "status" in result:
            self.on_trial_result(trial_id, result)
        record = self._record(*self._open.pop(trial_id), self._rows.pop(trial_id, []), error)
        self._database.add([record], over_failed=True)
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
            if record.status == "diverged" or math.isnan(value):
                value = math.inf
            failed = record.status == "failed"
            self._proposals.learn(index, record.parameters["drawn"], None if failed else value)

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
        reports = [row for row in rows if "step" in row]
        last = reports[-1] if reports else {}
        status, error = _outcome(rows, sweep.total_steps, lost)
        metrics = {k.removeprefix("metric/"): v for k, v in last.items() if k[:7] == "metric/"}
        if math.isfinite(last.get("val_loss", math.inf)):
            metrics["val_loss"] = last["val_loss"]
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
            seconds=rows[-1]["seconds"] if rows else None,
            metrics=metrics,
            curve={k: [_finite(row[k]) for row in reports] for k in names},
            environment=dict(sweep.environment),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _place(row: Mapping[str, Any]) -> float:
    """The step of a report; how a run ended comes behind them all."""
    return float(row.get("step", math.inf))


def _outcome(rows: Sequence[Mapping[str, Any]], total_steps: int, lost: bool) -> tuple[str, str]:
    """Status and message of a run, by its rows."""
    if lost:
        return "failed", f"Its worker was lost {LOST_WORKERS} times."
    if rows and rows[-1]["status"] == "failed":
        return "failed", rows[-1]["error"]
    reports = [row for row in rows if "step" in row]
    if not reports:
        return "failed", "It reported nothing."
    last = reports[-1]
    cut = last is rows[-1] and last["step"] < total_steps and not last["reached"]
    return "stopped" if cut and last["status"] == "done" else last["status"], ""


def recorded(sweep: Sweep, database: PolicyDatabase) -> list[TrialRecord]:
    """All trials of a sweep, in the order of their numbers."""
    records = database.trials(sweep=sweep.name, curves=True)
    return sorted(records, key=lambda record: record.parameters["index"])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _reached(spent: float, most: float | None) -> bool:
    return most is not None and spent >= most
