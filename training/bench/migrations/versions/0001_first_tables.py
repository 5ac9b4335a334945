"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_SEARCHED_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    _shared("tasks", _text("key"), _text("name"), _column("features", _SEARCHED_JSON))
    _shared("policies", _text("kind"), _text("name"), _column("parameters", sa.JSON()))
    _shared("environments", _column("values", sa.JSON()))
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("uid", _TEXT, nullable=False, unique=True),
        sa.Column("task_id", sa.Integer(), sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("policy_id", sa.Integer(), sa.ForeignKey("policies.id"), nullable=False),
        sa.Column("environment_id", sa.Integer(), sa.ForeignKey("environments.id"), nullable=False),
        _column("seed", sa.BigInteger()),
        *(_text(name) for name in ("sweep", "status", "error", "created")),
        _column("steps", sa.Integer()),
        sa.Column("seconds", sa.Double()),
        sa.Column("val_loss", sa.Double()),
        _column("metrics", sa.JSON()),
    )
    op.create_table(
        "curves",
        sa.Column("trial_id", sa.Integer(), sa.ForeignKey("trials.id"), primary_key=True),
        _column("names", sa.JSON()),
        _column("data", sa.LargeBinary()),
    )
    op.create_index("ix_trials_best", "trials", ["task_id", "status", "val_loss"])
    for table, name in _INDEXED:
        op.create_index(f"ix_{table}_{name}", table, [name])


def downgrade() -> None:
    """Remove the tables."""
    for table in ("curves", "trials", "environments", "policies", "tasks"):
        op.drop_table(table)


_INDEXED = (
    ("tasks", "key"),
    ("tasks", "name"),
    ("policies", "name"),
    ("trials", "policy_id"),
    ("trials", "sweep"),
    ("trials", "created"),
)


def _shared(name: str, *columns: sa.Column[Any]) -> None:
    digest = sa.Column("digest", _TEXT, nullable=False, unique=True)
    op.create_table(name, sa.Column("id", sa.Integer(), primary_key=True), digest, *columns)


def _text(name: str) -> sa.Column[Any]:
    return _column(name, _TEXT)


def _column(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)
