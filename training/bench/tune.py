"""``lrenv tune``: the three modes of LRBench++ on Ray Tune (arXiv 2309.08859, section 3)."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

import lrenv
from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.imports import import_function
from lrenv.policies.frozen import find_card, load_policy
from lrenv.trainees.registry import build_task
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import load_data
from lrenv.training.bench.database import PolicyDatabase, TrialRecord, default_place, task_features
from lrenv.training.bench.settings import TuneSettings
from lrenv.training.bench.space import SearchSpace, proposals
from lrenv.training.bench.sweep import Sweep, run_sweep, sweep_name
from lrenv.training.bench.sweep_page import write_sweep_page
from lrenv.training.bench.trial import TrainTrainee, Trial
from lrenv.training.progress import console
from lrenv.training.runfolder import check_settings, read_json, write_json
from lrenv.training.settings import check_least, check_seed

_FREE = {"output", "database", "workers", "ray_address", "resume", "trials", "max_steps"}
_FREE |= {"max_seconds"}
_AROUND = (0.1, 3.0)


def tune(settings: TuneSettings) -> list[TrialRecord]:
    """Run a sweep, print its best trials, and write page and figures.

    Returns:
        All trials of the sweep.

    Raises:
        InputError: A setting cannot be used, the folder belongs to another sweep, the database
            or Ray cannot be reached, or no trial came to its end.
    """
    if settings.resume:
        settings = _started_with(settings)
    _check(settings)
    if settings.learned:
        settings = replace(settings, learned=_from_root(settings.learned))
    train, sweep = _job(settings)
    space = _space(settings)
    proposals(space, settings.search, settings.points, settings.seed)  # refuses what cannot be
    folder = make_folder(settings.output)
    check_settings(folder, settings, free=_FREE)
    written = folder / "sweep.json"
    if written.exists() and read_json(written)["sweep"]["name"] != sweep.name:
        console.print(
            "The function, the policy or the data changed, which makes a new sweep: its page will "
            "replace the one there, whose trials stay in the database.",
            soft_wrap=True,
        )
    learned = [settings.learned] if settings.learned else []
    with PolicyDatabase(settings.database or default_place()) as database:

        def run(sweep: Sweep, space: SearchSpace) -> list[TrialRecord]:
            walk = proposals(space, settings.search, settings.points, settings.seed)
            return run_sweep(
                train,
                sweep,
                walk,
                database,
                folder,
                learned=learned,
                workers=settings.workers,
                ray_address=settings.ray_address,
            )

        if settings.around:
            space = _narrowed(space, run(replace(sweep, max_trials=0), space))
        records = run(sweep, space)
    rows = [asdict(record) for record in records]
    write_json(written, {"sweep": asdict(sweep), "trials": rows})
    page = write_sweep_page(folder / "sweep.html", sweep, records)
    console.print(f"Page: {page.resolve()}", soft_wrap=True)
    _show(sweep, records)
    return records


def _started_with(settings: TuneSettings) -> TuneSettings:
    path = settings.output / "settings.json"
    if not path.exists():
        raise InputError(
            f"Expected a sweep in {settings.output}, got none; name its folder by --output, or "
            "start one without --resume."
        )
    kept = read_json(path)
    # What may change and was named with --resume is as it was named.
    named = {f.name for f in fields(settings) if getattr(settings, f.name) != f.default} & _FREE
    known = {field.name for field in fields(settings)} - {"output", "resume"} - named
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in kept.items() if k in known
    }
    return replace(settings, resume=False, **values)


def _check(settings: TuneSettings) -> None:
    check_least(settings, trials=1, total_steps=1, workers=1)
    for name in ("max_steps", "max_seconds"):
        if (value := getattr(settings, name)) is not None and not value > 0:
            raise InputError(f"Expected {name} above 0, got {value}; leave it out for no limit.")
    check_seed(settings.seed)
    if (settings.mode == "cost") != (settings.target is not None):
        raise InputError(
            f"Expected a target in the mode cost and in no other, got {settings.target} in "
            f"{settings.mode}; give --target a validation loss."
        )
    if settings.around and not settings.learned:
        raise InputError("Expected a learned policy to search around, got none; give --learned.")


def _from_root(learned: str) -> str:
    """The path of a policy from the root, for workers in other folders; names stay as they are."""
    card = find_card(learned)
    return str(card.absolute()) if card else learned


def _space(settings: TuneSettings) -> SearchSpace:
    segments = settings.segments if settings.mode == "composition" else 1
    return SearchSpace(
        settings.policies,
        settings.low,
        settings.high,
        settings.total_steps,
        segments,
        not settings.same_kind,
    )


def _narrowed(space: SearchSpace, records: Sequence[TrialRecord]) -> SearchSpace:
    sound = [record for record in records if record.status != "failed"]
    rates = [lr for lr in sound[0].curve["lr"] if lr] if sound else []
    if not rates:
        raise InputError(
            "Expected the learned policy's run to search around, got none that reports its LRs"
            f"{_first_failure(records)}; leave out --around."
        )
    low, high = (factor * max(rates) for factor in _AROUND)
    console.print(f"Peak LRs from {low:.3g} to {high:.3g}, around what the policy chose.")
    return replace(space, low=low, high=high)


def _job(settings: TuneSettings) -> tuple[Callable[[Trial], None], Sweep]:
    """The training function and the sweep."""
    train: Callable[[Trial], None]
    if settings.function:
        train, source = _import_function(settings.function)
        name, key, features, data = settings.function, sweep_name(settings.function, source), {}, ""
    else:
        optimizer = OptimizerSpec.usual(settings.optimizer)
        task = build_task(settings.trainee, settings.total_steps, optimizer)
        train, data = TrainTrainee(task), load_data(task.data).name
        name, key = f"{settings.trainee}, {settings.optimizer}", task.key()
        features = task_features(task)
    defining = {k: v for k, v in asdict(settings).items() if k not in _FREE}
    if settings.learned:
        defining["learned"] = load_policy(settings.learned).card["sha256"]
    environment = {
        "lrenv": lrenv.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "data": data,
    }
    measure = settings.measure if settings.mode == "cost" else "val_loss"
    return train, Sweep(
        name=sweep_name(key, defining, data),
        task=name,
        task_key=key,
        features=features,
        environment=environment,
        total_steps=settings.total_steps,
        seed=settings.seed,
        measure=measure,
        target=settings.target,
        max_trials=settings.trials,
        max_steps=settings.max_steps,
        max_seconds=settings.max_seconds,
        early_stopping=settings.early_stopping,
    )


def _import_function(place: str) -> tuple[Callable[[Trial], None], str]:
    """A training function, and a hash of the files that name and define it."""
    function = import_function(place, "a training function")
    module = place.partition(":")[0]
    names = sorted({module, getattr(function, "__module__", module)})
    files = [getattr(sys.modules.get(name), "__file__", None) or "" for name in names]
    source = b"".join(Path(file).read_bytes() for file in files if Path(file).is_file())
    return function, hashlib.sha256(source).hexdigest()


def _first_failure(records: Sequence[TrialRecord]) -> str:
    """The first trial's message that has one, for errors."""
    told = [r for r in records if r.error]
    return f" ({told[0].policy}: {' '.join(told[0].error.split())})" if told else ""


def _show(sweep: Sweep, records: Sequence[TrialRecord]) -> None:
    """Print the best trials, and where no run reached the target, the closest."""
    counts = {s: sum(r.status == s for r in records) for s in ("diverged", "failed", "stopped")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"{len(records)} trials{f' ({told})' if told else ''}.")
    best = sweep.best(records)
    if best is None:
        raise InputError(
            f"Expected a trial that comes to its end, got none{_first_failure(records)}; see the "
            "page, and start again what failed."
        )
    if counts["failed"]:
        console.print(f"Failed first{_first_failure(records)}.", markup=False)
    table = Table("trial", Column("policy", overflow="fold"), "validation loss", "steps", "seconds")
    done = sorted((r for r in records if r.status == "done"), key=sweep.value)
    for record in done[:10]:
        table.add_row(
            "–" if record.parameters["index"] < 0 else str(record.parameters["index"]),
            f"learned: {record.policy}" if record.policy_kind == "learned" else record.policy,
            f"{record.metrics['val_loss']:.4g}",
            str(record.steps),
            f"{record.seconds or 0:.1f}",
        )
    console.print(table)
    if sweep.target is not None and best.metrics["val_loss"] > sweep.target:
        closest = min(done, key=lambda r: r.metrics["val_loss"])
        console.print(
            f"No trial reached a validation loss of {sweep.target:g}; the closest is "
            f"{closest.metrics['val_loss']:.4g}, by {closest.policy}."
        )
