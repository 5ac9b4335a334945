"""The policy database: which policy was how good on which task, on SQLite or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, Select, func, literal, select
from sqlalchemy.orm import Session, contains_eager, joinedload

from lrenv.errors import InputError
from lrenv.training.bench.engine import clear_errors, migrate, open_engine, retried
from lrenv.training.bench.features import task_features
from lrenv.training.bench.tables import (
    CurveRow,
    EnvironmentRow,
    PolicyRow,
    TaskRow,
    TrialRow,
    unpack,
)
from lrenv.training.bench.trial_record import (
    Suggestion,
    TrialRecord,
    checked_record,
    read_numbers,
)
from lrenv.training.bench.writing import insert_trials

__all__ = ["PolicyDatabase", "Suggestion", "TrialRecord", "default_place", "task_features"]

T = TypeVar("T")
_BATCH = 500
"""Trials written in one transaction, or read at once."""


def default_place() -> str:
    """Place of the database where none is named: ``$LRENV_DATABASE``, or one in ``runs``."""
    return os.environ.get("LRENV_DATABASE") or "runs/policies.sqlite"


class PolicyDatabase:
    """A store of trials that many processes may write and read at the same time.

    On a folder that machines share through a network, use PostgreSQL: SQLite's locks are for one
    machine.
    """

    def __init__(self, place: str | Path, *, timeout: float = 30.0) -> None:
        """Open the database; it is made or brought to the newest version where needed.

        Args:
            place: Path of an SQLite file, or a URL such as ``postgresql://user@host/name``.
            timeout: Longest wait for other writers, in seconds.

        Raises:
            InputError: It cannot be opened, is newer than this lrenv, or is no policy database.
        """
        self.engine, self.name = open_engine(place, timeout)
        self._timeout = timeout
        self._guarded(lambda: migrate(self.engine, self.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def add(self, records: Iterable[TrialRecord], *, over_failed: bool = False) -> int:
        """Insert the records whose uid is new, in one transaction a batch.

        Args:
            records: The records.
            over_failed: Replace trials of these uids that failed.

        Returns:
            How many were new, or replaced one that failed.

        Raises:
            InputError: A record has a value that cannot be stored, or the database does not take
                it; the batches before are stored.
        """
        checked = map(checked_record, records)
        added = 0
        while batch := list(islice(checked, _BATCH)):
            insert = partial(insert_trials, batch, over_failed=over_failed)
            added += self._in_session(insert, write=True)
        return added

    def uids(self) -> set[str]:
        """Names of all trials."""
        return self._in_session(lambda session: set(session.scalars(select(TrialRow.uid))))

    def trials(
        self,
        *,
        sweep: str | None = None,
        task: str | None = None,
        policy: str | None = None,
        status: str | None = None,
        curves: bool = False,
        limit: int | None = None,
    ) -> list[TrialRecord]:
        """Return trials, the newest first.

        Args:
            sweep: Those of a sweep.
            task: Those of a task, by its name or key.
            policy: Those of a policy, by its name or notation.
            status: Those with a status.
            curves: Read the curves too; they are empty otherwise.
            limit: So many at most.
        """
        query = _select_trials(curves).order_by(TrialRow.created.desc(), TrialRow.uid).limit(limit)
        equal = {TrialRow.sweep: sweep, PolicyRow.name: policy, TrialRow.status: status}
        query = query.where(*(column == v for column, v in equal.items() if v is not None))
        if task is not None:
            query = query.where((TaskRow.name == task) | (TaskRow.key == task))
        return self._records(query, curves)

    def stream(self, skip: Set[str] = frozenset()) -> Iterator[TrialRecord]:
        """Yield all trials with their curves, the oldest first, without those of some uids."""
        order = select(TrialRow.id, TrialRow.uid).order_by(TrialRow.created, TrialRow.uid)
        pairs = self._in_session(lambda session: session.execute(order).all())
        ids = [i for i, uid in pairs if uid not in skip]
        for start in range(0, len(ids), _BATCH):
            query = _select_trials(curves=True).where(TrialRow.id.in_(ids[start : start + _BATCH]))
            yield from self._records(query.order_by(TrialRow.created, TrialRow.uid), curves=True)

    def similar(self, features: Mapping[str, float], n: int = 5) -> list[Suggestion]:
        """Return the best policy, by validation loss, of each of the nearest tasks.

        Tasks are as far apart as the absolute differences of their features add up to. Features
        that ``features`` lacks do not count, those that a stored task lacks are 0. Tasks without a
        trial that is done, with a finite ``val_loss``, are left out.

        Args:
            features: Those of the task asked for, see :func:`task_features`.
            n: Number of tasks.

        Raises:
            InputError: There are no features.
        """
        if not features:
            raise InputError("Expected features of a task, got none; take those of task_features.")
        distance = _distance(features)
        measured = select(TrialRow.id).where(TrialRow.task_id == TaskRow.id, *_measured()).exists()
        nearest = select(TaskRow.id, distance).where(measured).order_by(distance, TaskRow.id)
        return self._in_session(
            lambda session: [
                _suggestion(session, task, far) for task, far in session.execute(nearest.limit(n))
            ]
        )

    def merge(self, other: PolicyDatabase) -> int:
        """Insert the trials of another database whose uid is new, and return how many."""
        return self.add(other.stream(skip=self.uids()))

    def counts(self) -> dict[str, int]:
        """Rows of each table."""
        tables = (TrialRow, TaskRow, PolicyRow, EnvironmentRow, CurveRow)
        return self._in_session(
            lambda session: {
                table.__tablename__: session.scalars(select(func.count()).select_from(table)).one()
                for table in tables
            }
        )

    def _records(self, query: Select[TrialRow], curves: bool) -> list[TrialRecord]:
        return self._in_session(
            lambda session: [_record(trial, curves) for trial in session.scalars(query)]
        )

    def _in_session(self, work: Callable[[Session], T], write: bool = False) -> T:
        def once() -> T:
            with Session(self.engine.execution_options(write=write)) as session, session.begin():
                return work(session)

        return self._guarded(once)

    def _guarded(self, work: Callable[[], T]) -> T:
        with clear_errors(self.engine, self.name, self._timeout):
            return retried(work, self._timeout)


def _select_trials(curves: bool) -> Select[TrialRow]:
    query = select(TrialRow).join(TrialRow.task).join(TrialRow.policy)
    eager = [contains_eager(TrialRow.task), contains_eager(TrialRow.policy)]
    eager.append(joinedload(TrialRow.environment))
    return query.options(*eager, *([joinedload(TrialRow.curve)] if curves else []))


def _measured() -> Sequence[ColumnElement[bool]]:
    return TrialRow.status == "done", TrialRow.val_loss.is_not(None)


def _distance(features: Mapping[str, float]) -> ColumnElement[float]:
    total: ColumnElement[Any] = literal(0.0)
    for name, value in read_numbers(features).items():
        total = total + func.abs(func.coalesce(TaskRow.features[name].as_float(), 0.0) - value)
    return total.label("distance")


def _suggestion(session: Session, task_id: int, distance: float) -> Suggestion:
    of_task = TrialRow.task_id == task_id
    best = _select_trials(curves=False).where(of_task, *_measured())
    trial = session.scalars(best.order_by(TrialRow.val_loss, TrialRow.uid).limit(1)).one()
    count = session.scalars(select(func.count()).select_from(TrialRow).where(of_task)).one()
    return Suggestion(
        distance=distance,
        task=trial.task.name,
        task_key=trial.task.key,
        policy_kind=trial.policy.kind,
        policy=trial.policy.name,
        parameters=trial.policy.parameters,
        val_loss=read_numbers(trial.metrics)["val_loss"],
        uid=trial.uid,
        trials=count,
    )


def _record(trial: TrialRow, curves: bool) -> TrialRecord:
    curve = trial.curve if curves else None
    return TrialRecord(
        uid=trial.uid,
        task=trial.task.name,
        task_key=trial.task.key,
        features=read_numbers(trial.task.features),
        policy_kind=trial.policy.kind,
        policy=trial.policy.name,
        parameters=trial.policy.parameters,
        seed=trial.seed,
        sweep=trial.sweep,
        status=trial.status,
        error=trial.error,
        steps=trial.steps,
        seconds=trial.seconds,
        metrics=read_numbers(trial.metrics),
        curve=unpack(curve.names, curve.data) if curve else {},
        environment=trial.environment.values,
        created=trial.created,
    )
