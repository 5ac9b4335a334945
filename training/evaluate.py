"""Evaluation: policies beside expert schedules and peers, default and tuned, over paired seeds.

Every ratio is a final validation loss over the tuned expert's of the same task and seed; the tuned
expert is the best of the whole grid on that very seed, which favours it. Test data is read for the
final figures alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
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
from lrenv.trainees.registry import build_task
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.trainees.unseen import harsh_tasks, held_out_tasks, unseen_tasks
from lrenv.training.compare import ExpertsPart, OtherSeedPart, Part, PeerPart, PolicyPart
from lrenv.training.expert_search import SearchResult, check_data, search_all
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.peers import PEERS, get_peer
from lrenv.training.progress import console, track
from lrenv.training.records import MATCHED, RunRecord, summaries
from lrenv.training.report import results_table, write_report
from lrenv.training.runfolder import read_json, write_json
from lrenv.training.settings import EvaluateSettings

_FORMAT = 1  # of the records; raised where a method or a ratio comes to mean something else
_OF_A_TRAINEE = ("trainee", "optimizers", "total_steps")


def evaluate(settings: EvaluateSettings, further: Sequence[Part] = ()) -> Path:
    """Run the comparison, print the table and write results and report.

    Args:
        settings: The settings.
        further: Methods beside those that the settings name.

    Returns:
        The path of the report.

    Raises:
        InputError: A setting cannot be used, or the folder cannot be written.
    """
    if settings.seeds < 1:
        raise InputError(f"Expected at least one seed, got {settings.seeds}; raise it.")
    for name in ("optimizers", "policies", "hints"):
        if not (given := getattr(settings, name)):
            raise InputError(f"Expected some {name}, got none; name one.")
        if len(set(given)) < len(given):
            raise InputError(
                f"Expected each of the {name} once, got {', '.join(map(str, given))}; name others."
            )
    peaks = () if settings.peak is None else (settings.peak,)
    for name, rates in (("finite hints", settings.hints), ("a finite peak", peaks)):
        for rate in rates:
            if not 0 < rate < math.inf:
                raise InputError(f"Expected {name} above 0, got {rate}; name another LR.")
    jobs = [
        (name, replace(task, seed=seed))
        for name, task in evaluated_tasks(settings).items()
        for seed in range(settings.seeds)
    ]
    parts = [*compared_parts(settings), *further]
    folder = make_folder(settings.output)
    # One thread, as the workers have: the number of threads changes rounding.
    torch.set_num_threads(1)
    with Workers(settings.workers, settings.ray_address) as workers:
        records = compare_all(jobs, parts, folder, workers)
    results = collect_results(
        "Learned schedules against experts", asdict(settings), [t for _, t in jobs], records
    )
    return publish(results, folder)


def evaluated_tasks(settings: EvaluateSettings) -> dict[str, Task]:
    """The tasks that the settings name, by their names in the results."""
    if settings.suite == "trainee":
        return {
            f"{settings.trainee}, {name}": build_task(
                settings.trainee, settings.total_steps, OptimizerSpec.usual(name)
            )
            for name in settings.optimizers
        }
    given = [k for k in _OF_A_TRAINEE if getattr(settings, k) != getattr(EvaluateSettings, k)]
    if given:
        raise InputError(
            f"Expected no {' or '.join(given)} beside the suite {settings.suite}, which brings its "
            "own; leave out one of them."
        )
    if settings.suite == "harsh":
        return harsh_tasks()
    if settings.suite == "unseen-mlps":
        return {_mlp_name(task): task for task in held_out_tasks()}
    return unseen_tasks(heavy=settings.suite == "unseen-heavy")


def _mlp_name(task: Task) -> str:
    spec: Any = task.spec
    shape = "-".join(map(str, spec.hidden))
    name = f"{shape} {spec.activation}, {spec.optimizer.name} {spec.optimizer.momentum:g}"
    return f"{name}, batch {spec.batch_size}, {spec.total_steps} steps"


def compared_parts(settings: EvaluateSettings) -> list[Part]:
    """The methods that the settings name.

    Raises:
        InputError: Two policies have the same name, or there is no such peer.
    """
    policies = [load_policy(name) for name in settings.policies]
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise InputError(
            f"Expected policies of different names, got {', '.join(names)}; compare them in two "
            "evaluations, or export one under another name."
        )
    peers = tuple(PEERS) if settings.peers == ("all",) else settings.peers
    if len(set(peers)) < len(peers):
        raise InputError(f"Expected each peer once, got {', '.join(peers)}; name it once.")
    for name in peers:
        get_peer(name).load()
    return [
        *(PolicyPart(policy, settings.hints) for policy in policies),
        *(PolicyPart(p, settings.hints, rollback=True) for p in policies if settings.rollback),
        *(PolicyPart(p, settings.hints, layerwise=True) for p in policies if settings.layerwise),
        *(PolicyPart(p, settings.hints, validate=True) for p in policies if settings.validate),
        ExpertsPart(settings.peak),
        OtherSeedPart(),
        *(PeerPart(name, settings.peak, settings.tune_peers) for name in peers),
    ]


def compare_all(
    jobs: Sequence[tuple[str, Task]],
    parts: Sequence[Part],
    folder: Path,
    workers: Workers = IN_PROCESS,
) -> list[RunRecord]:
    """Run every method on all jobs, one file of records a part and job; none is run again.

    Args:
        jobs: Name in the results and task.
        parts: The methods.
        folder: Where the records go.
        workers: Who searches the experts and trains.
    """
    sets = {task.data: load_data(task.data) for _, task in jobs}
    notes = {key: f"{data.name}, {data.note}" for key, data in sets.items()}
    told = "\n".join(f"Data: {note}" for note in dict.fromkeys(notes.values()))
    console.print(told, markup=False)
    tasks = [task for _, task in jobs]
    if any(isinstance(part, OtherSeedPart) for part in parts):
        tasks += [OtherSeedPart.searched(task) for task in tasks]
    tasks = list(dict.fromkeys(tasks))
    searches = dict(zip(tasks, search_all(tasks, workers), strict=True))
    todo = [
        (sets[task.data].name, task, name, searches[task], part)
        for name, task in jobs
        for part in parts
    ]
    paths = [
        folder / "records" / _stamp(part, notes[task.data], search) / f"{task.key()}.json"
        for _, task, _, search, part in todo
    ]
    missing = {path: job for path, job in zip(paths, todo, strict=True) if not path.exists()}
    found = workers.starmap(_run_part, missing.values())
    for path, made in zip(track(missing, "Training and comparing"), found, strict=True):
        write_json(path, [asdict(record) for record in made])
    return [
        _identified(RunRecord(**row), data, task, part)
        for path, (data, task, _, _, part) in zip(paths, todo, strict=True)
        for row in read_json(path)
    ]


def _identified(record: RunRecord, data: str, task: Task, part: Part) -> RunRecord:
    """The record with what tells its task and policy from others of their names."""
    record = replace(record, total_steps=task.spec.total_steps, data=data)
    if not isinstance(part, PolicyPart):
        return record
    return replace(record, policy=part.policy.name, policy_hash=part.policy.card["sha256"])


def _stamp(part: Part, data: str, search: SearchResult) -> str:
    setup = json.dumps([_FORMAT, lrenv.__version__, data, search.reference, part.key])
    return hashlib.sha256(setup.encode()).hexdigest()[:16]


def _run_part(
    data: str, task: Task, name: str, search: SearchResult, part: Part
) -> list[RunRecord]:
    check_data(task, data)
    return part.run(task, name, search)


def publish(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results.json`` and ``report.html``, print the table; returns the report's path."""
    write_json(folder / "results.json", results)
    shown = _shown(results)
    report = write_report(shown, folder / "report.html")
    console.print(results_table(shown))
    console.print(f"Report: {report.resolve()}", markup=False, soft_wrap=True)
    return report


def _shown(results: dict[str, Any]) -> dict[str, Any]:
    """The results with a lone LR-matched constant named without its policy."""
    names = {row["method"] for row in results["runs"] if row["method"].startswith(MATCHED)}
    if len(names) != 1:
        return results
    short = {
        key: [{**row, "method": MATCHED} if row["method"] in names else row for row in results[key]]
        for key in ("runs", "summary")
    }
    return {**results, **short}


def collect_results(
    title: str, settings: Mapping[str, Any], tasks: Iterable[Task], records: Sequence[RunRecord]
) -> dict[str, Any]:
    """Summarise records by method, and say on what, where and when they were made."""
    sets = {task.data: load_data(task.data) for task in tasks}
    notes = {data.name: data.note for data in sets.values()}
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
        "summary": summaries(records),
    }
