"""Evaluation: policies beside expert schedules, default and tuned, over paired seeds.

Every ratio is a final validation loss over the tuned expert's of the same task and seed; the tuned
expert is the best of the whole grid on that very seed, which favours it. Test data is read for the
final figures alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lrenv
from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.policies.frozen import FrozenPolicy, load_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.expert_search import (
    SearchResult,
    check_data,
    run_schedules,
    search_all,
)
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.progress import console, track
from lrenv.training.records import MATCHED, TUNED, RunRecord, make_record, summarise
from lrenv.training.report import results_table, write_report
from lrenv.training.runfolder import read_json, write_json
from lrenv.training.settings import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the comparison on a trainee, print the table and write results and report.

    Returns:
        The path of the report.
    """
    if settings.seeds < 1 or not settings.optimizers or not settings.policies:
        raise InputError(
            "Expected at least one seed, optimizer and policy, got "
            f"{settings.seeds}, {settings.optimizers} and {settings.policies}; name some."
        )
    folder = make_folder(settings.output)
    # One thread, as the workers have: the number of threads changes rounding.
    torch.set_num_threads(1)
    jobs = [
        (
            f"{settings.trainee}, {name}",
            build_task(settings.trainee, settings.total_steps, OptimizerSpec(name), seed),
        )
        for name in settings.optimizers
        for seed in range(settings.seeds)
    ]
    policies = [load_policy(name) for name in settings.policies]
    with Workers(settings.workers, settings.ray_address) as workers:
        records = compare_all(jobs, policies, settings.hints, settings.peak, folder, workers)
    results = collect_results(
        "Learned schedules against experts", asdict(settings), [t for _, t in jobs], records
    )
    return publish(results, folder)


def compare_all(
    jobs: Sequence[tuple[str, Task]],
    policies: Sequence[FrozenPolicy],
    hints: Sequence[float],
    peak: float | None,
    folder: Path,
    workers: Workers = IN_PROCESS,
) -> list[RunRecord]:
    """Run every method on all jobs, one file of records a job; those there are not run again.

    Args:
        jobs: Name in the results and task.
        policies: Policies to run.
        hints: LRs their jobs start with.
        peak: Peak LR of the untuned experts; the usual default if None.
        folder: Where the records go.
        workers: Who searches the experts and trains.

    Raises:
        InputError: Two policies have the same name.
    """
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise InputError(
            f"Expected policies of different names, got {', '.join(names)}; compare them in two "
            "evaluations, or export one under another name."
        )
    sets = {task.data: load_data(task.data) for _, task in jobs}
    names_of = dict.fromkeys(f"{data.name}, {data.note}" for data in sets.values())
    console.print("\n".join(f"Data: {name}" for name in names_of))
    setup = [lrenv.__version__, list(names_of), hints, peak, [p.card["sha256"] for p in policies]]
    stamp = hashlib.sha256(json.dumps(setup).encode()).hexdigest()[:16]
    paths = [folder / "records" / stamp / f"{task.key()}.json" for _, task in jobs]
    missing = {path: job for path, job in zip(paths, jobs, strict=True) if not path.exists()}
    searches = search_all([task for _, task in missing.values()], workers)
    todo = [
        (load_data(task.data).name, task, name, search)
        for (name, task), search in zip(missing.values(), searches, strict=True)
    ]
    found = workers.starmap(_compare_on, todo, policies, hints, peak)
    records: list[RunRecord] = []
    for path in track(paths, "Training and comparing"):
        if not path.exists():
            write_json(path, [asdict(record) for record in next(found)])
        records += [RunRecord(**row) for row in read_json(path)]
    return records


def publish(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results.json`` and ``report.html``, print the table; returns the report's path."""
    write_json(folder / "results.json", results)
    report = write_report(results, folder / "report.html")
    console.print(results_table(results))
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    return report


def _compare_on(data: str, task: Task, *arguments: Any) -> list[RunRecord]:
    check_data(task, data)
    return compare(task, *arguments)


def compare(
    task: Task,
    name: str,
    search: SearchResult,
    policies: Sequence[FrozenPolicy],
    hints: Iterable[float],
    peak: float | None = None,
) -> list[RunRecord]:
    """Run every method on one task and seed.

    Args:
        task: The task; its seed is the seed of all runs.
        name: How the task is called in the results.
        search: Its tuned expert.
        policies: Policies to run, each in a plain torch loop under ``LearnedLR``.
        hints: LRs their optimizers are made with.
        peak: Peak LR of the untuned experts; the usual default if None.
    """
    if task.spec.lr_multiplier != 1.0:
        raise InputError(
            f"Expected an lr_multiplier of 1 to compare LRs, got {task.spec.lr_multiplier}; "
            "leave it out."
        )
    total = task.spec.total_steps
    records, matched = [], []
    for policy in policies:
        for hint in hints:
            record, mean_lr = run_policy(task, name, policy, hint, search.reference)
            records.append(record)
            matched.append((policy.name, mean_lr))
    peak = peak or usual_peak(task.spec.optimizer)
    plans = [(kind, kind, peak) for kind in (*TUNED_KINDS, "constant")]
    # Hints make no difference to a policy that ignores them: one matched constant a policy.
    for policy_name, mean_lr in dict(matched).items():
        label = MATCHED if len(policies) == 1 else f"{MATCHED}: {policy_name}"
        plans.append((label, "constant", mean_lr))
    plans.append((TUNED, search.kinds[search.best], search.peaks[search.best]))
    rates = [schedule(kind, total, top) for _, kind, top in plans]
    runs = run_schedules(task, rates, ("val", "test"))
    finals = torch.stack([runs.scores["val"][0], *runs.scores["test"]], 1)
    for k, (label, kind, top) in enumerate(plans):
        labels = (name, label, f"{kind}, peak {top:.3g}", task.seed)
        history = (runs.losses[k], torch.tensor(rates[k]))
        records.append(make_record(labels, search.reference, finals[k].tolist(), history))
    return records


def usual_peak(optimizer: OptimizerSpec) -> float:
    """The peak LR people start from: 1e-3 for Adam, 1e-2 for SGD with momentum, 1e-1 without."""
    if optimizer.name != "sgd":
        return 1e-3
    return 1e-2 if optimizer.momentum else 1e-1


def run_policy(
    task: Task, name: str, policy: FrozenPolicy, hint: float, reference: float
) -> tuple[RunRecord, float]:
    """Train one run in a plain torch loop under ``LearnedLR``; returns its record and mean LR."""
    trainee = build_trainee(task)
    for group in trainee.optimizer.param_groups:
        group["lr"] = hint
    began = time.perf_counter()
    scheduler = LearnedLR(trainee.optimizer, task.spec.total_steps, policy)
    losses, rates = [], []
    for _ in range(task.spec.total_steps):
        loss = trainee.backward()
        rates.append(float(trainee.optimizer.param_groups[0]["lr"]))
        trainee.optimizer.step()
        scheduler.step(loss)
        losses.append(loss)
    seconds = time.perf_counter() - began
    finals = torch.cat([trainee.evaluate("val")[0], *trainee.evaluate("test")])
    labels = (name, f"learned: {policy.name}", f"hint {hint:g}", task.seed)
    history = (torch.cat(losses), torch.tensor(rates))
    record = make_record(labels, reference, finals.tolist(), history, seconds)
    return record, sum(rates) / len(rates)


def collect_results(
    title: str, settings: Mapping[str, Any], tasks: Iterable[Task], records: Sequence[RunRecord]
) -> dict[str, Any]:
    """Summarise records by method, and say on what, where and when they were made."""
    sets = {task.data: load_data(task.data) for task in tasks}
    notes = {data.name: data.note for data in sets.values()}
    by_method: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    return {
        "format": 1,
        "title": title,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
        "data": {"name": ", ".join(notes), "note": "; ".join(dict.fromkeys(notes.values()))},
        "environment": {
            "lrenv": lrenv.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": [asdict(record) for record in records],
        "summary": [summarise(name, rows) for name, rows in by_method.items()],
    }
