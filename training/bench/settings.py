"""Settings of ``lrenv tune``, ``db`` and ``monitor``, as ``lrenv.training.settings``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class TuneSettings:
    """Tune the learning rate over LRBench's policies, on Ray Tune: by grid, at random, or Bayesian.

    A sweep that was stopped goes on from its folder; each trial is recorded once, and tried again
    where it failed.
    """

    mode: Literal["single", "composition", "cost"] = "single"
    """What is sought: the best policy, the best sequence of policies, or the cheapest run to a
    target loss."""
    trainee: str = "mlp-mnist"
    """Trainee, see the README for the names."""
    function: str | None = None
    """Training function of your own instead, by module:name; it is called with a
    lrenv.training.bench.trial.Trial. Where its file changes, it is another sweep."""
    optimizer: str = "adam"
    """Optimizer of it: sgd or rmsprop (momentum 0.9), adam, or adamw (weight decay 0.01)."""
    total_steps: int = 600
    """Length of a run in optimizer steps."""
    seed: int = 0
    """Seed of the runs and of the search."""
    policies: tuple[str, ...] = ("FIX", "STEP", "EXP", "POLY", "SIG", "COS", "TRI2", "RSW")
    """Kinds of policies, by their names in LRBench."""
    low: float = 1e-5
    """Lowest peak LR."""
    high: float = 1.0
    """Highest peak LR."""
    segments: int = 2
    """Policies one after another, in the mode composition."""
    same_kind: bool = False
    """Make all of them of one kind (homogeneous), in the mode composition."""
    search: Literal["grid", "random", "bayesian"] = "bayesian"
    """How the policies are searched; bayesian is Optuna's TPE."""
    points: int = 5
    """Peak LRs of each policy in the grid."""
    trials: int = 40
    """Trials at most."""
    max_steps: int | None = None
    """Optimizer steps of all trials together, after which no trial starts."""
    max_seconds: float | None = None
    """Machine time of all trials together, in seconds, after which no trial starts."""
    early_stopping: bool = False
    """Cut runs short that do worse than others at the same step (ASHA)."""
    target: float | None = None
    """Validation loss to reach, in the mode cost."""
    measure: Literal["steps", "seconds"] = "steps"
    """Cost of a run, in the mode cost."""
    learned: str | None = "default"
    """Learned policy that is tried first, by name or path; None for none."""
    around: bool = False
    """Search peak LRs from a tenth to three times the largest that the learned policy chose."""
    database: str | None = None
    """Policy database, a file or a URL of SQLAlchemy; $LRENV_DATABASE or runs/policies.sqlite."""
    output: Path = Path("runs/tune")
    """Where page and figures go."""
    resume: bool = False
    """Go on with the sweep in the folder, with the settings it was started with."""
    workers: int = 2
    """Trials side by side."""
    ray_address: str | None = None
    """Ray cluster to use instead, by auto or host:port; needs lrenv on every machine of it."""


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
    """Optimizer: sgd or rmsprop (momentum 0.9), adam, or adamw (weight decay 0.01)."""
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


@dataclass(frozen=True)
class MonitorSettings:
    """Follow a run as it trains: loss, learning rate, decisions, guard, and the time left.

    Besides the folders of lrenv finetune it reads those of your own jobs, which append lines of
    JSON: to progress.jsonl one an optimizer step, with step and any of loss, lr, val_loss,
    total_steps and time (seconds of the clock), or to decisions.jsonl the entries of
    LearnedLR.decisions. Either may end on {"finished": true}.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    page: bool = False
    """Keep a page in the run folder, monitor.html, that shows the same in a browser."""
    once: bool = False
    """Show the run as it is, and end."""
    interval: float = 2.0
    """Seconds between two looks, a day at most."""
