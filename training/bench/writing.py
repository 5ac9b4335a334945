"""Inserts into the policy database that leave what is there as it is, or all but failures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from lrenv.training.bench.tables import (
    Base,
    CurveRow,
    EnvironmentRow,
    PolicyRow,
    TaskRow,
    TrialRow,
    pack,
)
from lrenv.training.bench.trial_record import TrialRecord, spelled_out

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
Shared = type[TaskRow] | type[PolicyRow] | type[EnvironmentRow]


def insert_trials(
    records: Sequence[TrialRecord], session: Session, over_failed: bool = False
) -> int:
    """Insert the records whose uid is new, or failed if these are replaced, and return how many.

    Everything goes in by ascending hash or uid: writers that insert the same rows wait for one
    another in one order, and never both.
    """
    by_uid = {record.uid: record for record in reversed(records)}
    if over_failed:
        _delete_failed(session, by_uid)
    known = set(session.scalars(select(TrialRow.uid).where(TrialRow.uid.in_(by_uid))))
    new = [by_uid[uid] for uid in sorted(by_uid.keys() - known)]
    if not new:
        return 0
    tasks = _shared_ids(session, TaskRow, [_task(record) for record in new])
    policies = _shared_ids(session, PolicyRow, [_policy(record) for record in new])
    environments = _shared_ids(session, EnvironmentRow, [_environment(record) for record in new])
    rows = [_trial(*row) for row in zip(new, tasks, policies, environments, strict=True)]
    insert = _insert(session, TrialRow).returning(TrialRow.id, TrialRow.uid)
    inserted = session.execute(insert, rows).all()
    curves = [
        {"trial_id": i, "names": list(by_uid[uid].curve), "data": pack(by_uid[uid].curve)}
        for i, uid in inserted
        if by_uid[uid].curve
    ]
    if curves:
        session.execute(_insert(session, CurveRow), curves)
    return len(inserted)


def _delete_failed(session: Session, uids: Collection[str]) -> None:
    failed = select(TrialRow.id).where(TrialRow.uid.in_(uids), TrialRow.status == "failed")
    ids = session.scalars(failed).all()
    session.execute(delete(CurveRow).where(CurveRow.trial_id.in_(ids)))
    session.execute(delete(TrialRow).where(TrialRow.id.in_(ids)))


def _insert(session: Session, table: type[Base]) -> Any:
    return _INSERTS[session.get_bind().dialect.name](table).on_conflict_do_nothing()


def _shared_ids(session: Session, table: Shared, values: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of rows that are stored once, inserted where they are new."""
    digests = [_digest(row) for row in values]
    rows = dict(zip(digests, values, strict=True))
    stored = select(table.digest, table.id).where(table.digest.in_(rows))
    missing = sorted(rows.keys() - dict(session.execute(stored).all()).keys())
    if missing:
        session.execute(_insert(session, table), [{"digest": d, **rows[d]} for d in missing])
    ids = dict(session.execute(stored).all())
    return [ids[digest] for digest in digests]


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:32]


def _task(record: TrialRecord) -> dict[str, Any]:
    return {"key": record.task_key, "name": record.task, "features": record.features}


def _policy(record: TrialRecord) -> dict[str, Any]:
    return {
        "kind": record.policy_kind,
        "name": record.policy,
        "parameters": record.parameters,
    }


def _environment(record: TrialRecord) -> dict[str, Any]:
    return {"values": record.environment}


def _trial(record: TrialRecord, task: int, policy: int, environment: int) -> dict[str, Any]:
    loss = record.metrics.get("val_loss", math.nan)
    own = ("uid", "seed", "sweep", "status", "error", "steps", "seconds", "created")
    return {name: getattr(record, name) for name in own} | {
        "task_id": task,
        "policy_id": policy,
        "environment_id": environment,
        "metrics": spelled_out(record.metrics),
        "val_loss": loss if math.isfinite(loss) else None,
    }
