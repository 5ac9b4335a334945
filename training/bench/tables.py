"""Tables of the policy database; ``migrations/`` makes the same ones, step by step.

A task, a policy or an environment is stored once for all its trials, named by a hash of what it
holds. Curves have a table of their own, so that listing trials never reads them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, LargeBinary, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

# PostgreSQL orders by the server's language unless told; SQLite orders by code points.
TEXT = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
SEARCHED_JSON = JSON().with_variant(postgresql.JSONB(), "postgresql")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {str: TEXT, float: Double, dict[str, Any]: JSON}  # noqa: RUF012


class TaskRow(Base):
    """A task, with the features by which it is compared."""

    __tablename__ = "tasks"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    key: Mapped[str] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(index=True)
    features: Mapped[dict[str, Any]] = mapped_column(SEARCHED_JSON)


class PolicyRow(Base):
    """A policy and its parameters."""

    __tablename__ = "policies"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(index=True)
    parameters: Mapped[dict[str, Any]]


class EnvironmentRow(Base):
    """Versions and machine that trials ran on."""

    __tablename__ = "environments"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    values: Mapped[dict[str, Any]]


class TrialRow(Base):
    """A trial less its curve; ``val_loss`` repeats the finite one of the metrics for searches."""

    __tablename__ = "trials"
    __table_args__ = (Index("ix_trials_best", "task_id", "status", "val_loss"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    policy_id: Mapped[int] = mapped_column(ForeignKey("policies.id"), index=True)
    environment_id: Mapped[int] = mapped_column(ForeignKey("environments.id"))
    seed: Mapped[int] = mapped_column(BigInteger)
    sweep: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    error: Mapped[str]
    steps: Mapped[int]
    seconds: Mapped[float | None]
    val_loss: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    created: Mapped[str] = mapped_column(index=True)
    task: Mapped[TaskRow] = relationship()
    policy: Mapped[PolicyRow] = relationship()
    environment: Mapped[EnvironmentRow] = relationship()
    curve: Mapped[CurveRow | None] = relationship(uselist=False)


class CurveRow(Base):
    """The curve of a trial: the names of its columns, and their values, see :func:`pack`."""

    __tablename__ = "curves"
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    names: Mapped[list[str]] = mapped_column(JSON)
    data: Mapped[bytes] = mapped_column(LargeBinary)


def pack(curve: dict[str, list[float | None]]) -> bytes:
    """Pack the columns of a curve, one after another.

    Returns:
        Little-endian float32, ``(n_columns, n_points)`` in C order, with NaN for None.
    """
    with np.errstate(over="ignore"):
        return np.array(list(curve.values()), dtype=np.float64).astype("<f4").tobytes()


def unpack(names: list[str], data: bytes) -> dict[str, list[float | None]]:
    """Read what :func:`pack` wrote of a curve with these columns."""
    columns = np.frombuffer(data, dtype="<f4").reshape(len(names), -1)
    values = columns.astype(np.float64).astype(object)
    values[np.isnan(columns)] = None
    return dict(zip(names, values.tolist(), strict=True))
