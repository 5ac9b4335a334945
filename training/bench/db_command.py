"""``lrenv db``: what the policy database holds, the best policies, and moving trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from lrenv.errors import InputError
from lrenv.trainees.registry import build_task
from lrenv.trainees.specs import OptimizerSpec
from lrenv.training.bench.database import (
    PolicyDatabase,
    Suggestion,
    TrialRecord,
    default_place,
    task_features,
)
from lrenv.training.bench.engine import sqlite_path
from lrenv.training.bench.exchange import export_trials, import_trials
from lrenv.training.bench.settings import (
    DatabaseExportSettings,
    DatabaseImportSettings,
    DatabaseListSettings,
    DatabaseMergeSettings,
    DatabaseQuerySettings,
    DatabaseShowSettings,
)
from lrenv.training.bench.trial_record import STATUSES
from lrenv.training.bench.trials_page import write_trials_page
from lrenv.training.progress import console


@dataclass(frozen=True)
class Moved:
    """Trials that a command came across, and those among them that were new."""

    trials: int
    new: int


def list_trials(settings: DatabaseListSettings) -> list[TrialRecord]:
    """Print the newest trials, and return them."""
    _check(settings)
    with _existing(settings.database) as database:
        counts, trials = database.counts(), _chosen(database, settings)
    table = Table(
        "created",
        "sweep",
        "task",
        Column("policy", overflow="fold"),
        "seed",
        "status",
        "steps",
        "val_loss",
    )
    for trial in trials:
        created, loss = trial.created[:19].replace("T", " "), trial.metrics.get("val_loss")
        names = (trial.sweep, trial.task, trial.policy)
        table.add_row(
            created,
            *map(escape, names),
            str(trial.seed),
            trial.status,
            str(trial.steps),
            "" if loss is None else f"{loss:.4g}",
        )
    console.print(table)
    console.print(
        f"{len(trials)} of {counts['trials']} trials, of {counts['tasks']} tasks and "
        f"{counts['policies']} policies"
    )
    return trials


def show_trials(settings: DatabaseShowSettings) -> Path:
    """Write the page of the newest trials, and return its path.

    Raises:
        InputError: There is no such database, or no trial that fits.
    """
    _check(settings)
    with _existing(settings.database) as database:
        trials, name = _chosen(database, settings, curves=True), database.name
    if not trials:
        raise InputError(f"Expected trials in {name} that fit, got none; ask for less.")
    path = write_trials_page(settings.output, f"Trials of {name}", trials)
    console.print(f"Page: {path.resolve()}", markup=False, soft_wrap=True)
    return path


def query_policies(settings: DatabaseQuerySettings) -> list[Suggestion]:
    """Print the best policy of each of the tasks nearest to a trainee, and return them."""
    _check_number("n", settings.n)
    optimizer = OptimizerSpec.usual(settings.optimizer)
    task = build_task(settings.trainee, settings.total_steps, optimizer)
    with _existing(settings.database) as database:
        found = database.similar(task_features(task), settings.n)
    table = Table(
        "distance", "task", "trials", "kind", Column("policy", overflow="fold"), "val_loss"
    )
    for item in found:
        table.add_row(
            f"{item.distance:.2f}",
            escape(item.task),
            str(item.trials),
            escape(item.policy_kind),
            escape(item.policy),
            f"{item.val_loss:.4g}",
        )
    console.print(table)
    if not found:
        console.print("No task has a trial that is done yet; import some or run a sweep.")
    return found


def export_database(settings: DatabaseExportSettings) -> int:
    """Write all trials to a file, and return how many."""
    with _existing(settings.database) as database:
        count = export_trials(database, settings.path)
    console.print(f"Trials written to {settings.path}: {count}", markup=False, soft_wrap=True)
    return count


def import_database(settings: DatabaseImportSettings) -> Moved:
    """Store the trials of a file that the database lacks."""
    with PolicyDatabase(settings.database or default_place()) as database:
        new, count = import_trials(database, settings.path)
    return _moved(Moved(trials=count, new=new), str(settings.path))


def merge_databases(settings: DatabaseMergeSettings) -> Moved:
    """Store the trials of another database that this one lacks."""
    with (
        _existing(settings.other) as other,
        PolicyDatabase(settings.database or default_place()) as database,
    ):
        new = database.merge(other)
        return _moved(Moved(trials=other.counts()["trials"], new=new), other.name)


def _moved(moved: Moved, source: str) -> Moved:
    console.print(f"{source}: {moved.trials} trials, {moved.new} new", markup=False, soft_wrap=True)
    return moved


def _chosen(
    database: PolicyDatabase, settings: DatabaseListSettings, curves: bool = False
) -> list[TrialRecord]:
    return database.trials(
        sweep=settings.sweep,
        task=settings.task,
        policy=settings.policy,
        status=settings.status,
        curves=curves,
        limit=settings.limit,
    )


def _existing(place: str | None) -> PolicyDatabase:
    place = place or default_place()
    path = sqlite_path(place)
    if path is not None and not path.expanduser().is_file():
        raise InputError(
            f"Expected a policy database at {place}, got no such file; run a sweep, import one, or "
            "name another with --database."
        )
    return PolicyDatabase(place)


def _check(settings: DatabaseListSettings) -> None:
    _check_number("limit", settings.limit)
    if settings.status not in (None, *STATUSES):
        raise InputError(
            f"Expected a status among {', '.join(STATUSES)}, got {settings.status!r}; name one."
        )


def _check_number(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"Expected {name} of at least 1, got {value}.")
