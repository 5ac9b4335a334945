"""Settings of ``lrenv db``; plain dataclasses, so that ``lrenv --help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class DatabaseListSettings:
    """List the newest trials."""

    sweep: str | None = None
    """Those of a sweep."""
    task: str | None = None
    """Those of a task, by its name or key."""
    policy: str | None = None
    """Those of a policy, by its name or its notation in LRBench."""
    status: str | None = None
    """Those that are done, stopped, diverged or failed."""
    limit: int = 20
    """Trials at most."""
    database: str | None = None
    """Policy database, a file or a URL of PostgreSQL; $LRENV_DATABASE or runs/policies.sqlite."""


@dataclass(frozen=True)
class DatabaseShowSettings(DatabaseListSettings):
    """Draw the newest trials on a page: learning rates, losses, and which LR was how good."""

    limit: int = 100
    """Trials at most."""
    output: Path = Path("runs/trials.html")
    """The page."""


@dataclass(frozen=True)
class DatabaseQuerySettings:
    """Find the best policies of the tasks that are most like a trainee."""

    trainee: str = "mlp-mnist"
    """Trainee, see the README for the names."""
    optimizer: str = "adam"
    """Optimizer: sgd (momentum 0.9), adam or adamw."""
    total_steps: int = 1000
    """Length of the run in optimizer steps."""
    n: int = 5
    """Tasks at most."""
    database: str | None = None
    """Policy database, a file or a URL of PostgreSQL; $LRENV_DATABASE or runs/policies.sqlite."""


@dataclass(frozen=True)
class DatabaseExportSettings:
    """Write all trials to a file."""

    path: Annotated[Path, tyro.conf.Positional]
    """File to write, .jsonl or .parquet."""
    database: str | None = None
    """Policy database, a file or a URL of PostgreSQL; $LRENV_DATABASE or runs/policies.sqlite."""


@dataclass(frozen=True)
class DatabaseImportSettings:
    """Store the trials of a file; those that are there already stay as they are."""

    path: Annotated[Path, tyro.conf.Positional]
    """File to read, .jsonl or .parquet."""
    database: str | None = None
    """Policy database, a file or a URL of PostgreSQL; $LRENV_DATABASE or runs/policies.sqlite."""


@dataclass(frozen=True)
class DatabaseMergeSettings:
    """Store the trials of another policy database."""

    other: Annotated[str, tyro.conf.Positional]
    """The other database, a file or a URL of PostgreSQL."""
    database: str | None = None
    """Policy database, a file or a URL of PostgreSQL; $LRENV_DATABASE or runs/policies.sqlite."""
