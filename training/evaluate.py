"""Evaluation: policies beside expert schedules and peers, default and tuned, over paired seeds.

Every ratio is a final validation loss over the tuned expert's of the same task and seed; the tuned
expert is the best of the whole grid on that very seed, which favours it. Test data is read for the
final figures alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lrenv
from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.policies.frozen import load_policy
from lrenv.trainees.families import held_out_tasks
from lrenv.trainees.registry import build_task
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.trainees.unseen import unseen_tasks
from lrenv.training.compare import Methods, compare
from lrenv.training.expert_search import SearchResult, check_data, search_all
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.peers import PEERS
from lrenv.training.progress import console, track
from lrenv.training.records import RunRecord, summarise
from lrenv.training.report import results_table, write_report
from lrenv.training.runfolder import read_json, write_json
from lrenv.training.settings import EvaluateSettings

_OF_A_TRAINEE = ("trainee", "optimizers", "total_steps")


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the comparison, print the table and write results and report.

    Returns:
        The path of the report.

    Raises:
        InputError: A setting cannot be used, or the folder cannot be written.
    """
    if settings.seeds < 1 or not settings.optimizers or not settings.policies:
        raise InputError(
            "Expected at least one seed, optimizer and policy, got "
            f"{settings.seeds}, {settings.optimizers} and {settings.policies}; name some."
        )
    methods = Methods(
        tuple(load_policy(name) for name in settings.policies),
        settings.hints,
        settings.peak,
        tuple(PEERS) if settings.peers == ("all",) else settings.peers,
        settings.tune_peers,
    )
    jobs = [
        (name, replace(task, seed=seed))
        for name, task in evaluated_tasks(settings).items()
        for seed in range(settings.seeds)
    ]
    folder = make_folder(settings.output)
    # One thread, as the workers have: the number of threads changes rounding.
    torch.set_num_threads(1)
    with Workers(settings.workers, settings.ray_address) as workers:
        records = compare_all(jobs, methods, folder, workers)
    results = collect_results(
        "Learned schedules against experts", asdict(settings), [t for _, t in jobs], records
    )
    return publish(results, folder)


def evaluated_tasks(settings: EvaluateSettings) -> dict[str, Task]:
    """The tasks that the settings name, by their names in the results."""
    if settings.suite == "trainee":
        return {
            f"{settings.trainee}, {name}": build_task(
                settings.trainee, settings.total_steps, OptimizerSpec(name)
            )
            for name in settings.optimizers
        }
    given = [k for k in _OF_A_TRAINEE if getattr(settings, k) != getattr(EvaluateSettings, k)]
    if given:
        raise InputError(
            f"Expected no {' or '.join(given)} beside the suite {settings.suite}, which brings its "
            "own; leave out one of them."
        )
    if settings.suite == "unseen-mlps":
        return {_mlp_name(task): task for task in held_out_tasks()}
    return unseen_tasks(heavy=settings.suite == "unseen-heavy")


def _mlp_name(task: Task) -> str:
    spec: Any = task.spec
    shape = "-".join(map(str, spec.hidden))
    name = f"{shape} {spec.activation}, {spec.optimizer.name} {spec.optimizer.momentum:g}"
    return f"{name}, batch {spec.batch_size}, {spec.total_steps} steps"


def compare_all(
    jobs: Sequence[tuple[str, Task]],
    methods: Methods,
    folder: Path,
    workers: Workers = IN_PROCESS,
) -> list[RunRecord]:
    """Run every method on all jobs, one file of records a job; those there are not run again.

    Args:
        jobs: Name in the results and task.
        methods: What is compared.
        folder: Where the records go.
        workers: Who searches the experts and trains.
    """
    sets = {task.data: load_data(task.data) for _, task in jobs}
    names_of = dict.fromkeys(f"{data.name}, {data.note}" for data in sets.values())
    console.print("\n".join(f"Data: {name}" for name in names_of))
    setup = [lrenv.__version__, list(names_of), *_identity(methods)]
    stamp = hashlib.sha256(json.dumps(setup).encode()).hexdigest()[:16]
    paths = [folder / "records" / stamp / f"{task.key()}.json" for _, task in jobs]
    missing = {path: job for path, job in zip(paths, jobs, strict=True) if not path.exists()}
    searches = search_all([task for _, task in missing.values()], workers)
    todo = [
        (load_data(task.data).name, task, name, search)
        for (name, task), search in zip(missing.values(), searches, strict=True)
    ]
    found = workers.starmap(_compare_on, todo, methods)
    records: list[RunRecord] = []
    for path in track(paths, "Training and comparing"):
        if not path.exists():
            write_json(path, [asdict(record) for record in next(found)])
        records += [RunRecord(**row) for row in read_json(path)]
    return records


def _identity(methods: Methods) -> list[Any]:
    hashes = [policy.card["sha256"] for policy in methods.policies]
    return [*(v for k, v in vars(methods).items() if k != "policies"), hashes]


def publish(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results.json`` and ``report.html``, print the table; returns the report's path."""
    write_json(folder / "results.json", results)
    report = write_report(results, folder / "report.html")
    console.print(results_table(results))
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    return report


def _compare_on(
    data: str, task: Task, name: str, search: SearchResult, methods: Methods
) -> list[RunRecord]:
    check_data(task, data)
    return compare(task, name, search, methods)


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
