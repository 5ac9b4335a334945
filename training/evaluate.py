"""Evaluation: policies beside expert schedules, default and tuned, over paired seeds.

Every ratio is a final validation loss over the tuned expert's of the same task and seed; the tuned
expert is the best of the whole grid on that very seed, which favours it. Test data is read for the
final figures alone.
"""

from __future__ import annotations

import math
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrenv
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.policies.frozen import FrozenPolicy, load_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.families import Task, load_data
from lrenv.trainees.mlp import OptimizerSpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.training.expert_search import N_PEAKS, run_schedules, search_experts
from lrenv.training.progress import console, track
from lrenv.training.report import results_table, write_report
from lrenv.training.runfolder import make_folder, write_json
from lrenv.training.settings import EvaluateSettings

TUNED, MATCHED = "tuned expert", "LR-matched constant"
_CURVE_POINTS = 200
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class RunRecord:
    """One run of one method, as the results keep it; None stands for a value that is not finite.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        detail: Its peak or hint.
        seed: Seed of weights and data order.
        ratio: Final validation loss over the tuned expert's.
        val_loss: Final validation loss.
        test_loss: Final test loss.
        test_accuracy: Final test accuracy.
        mean_train_loss: Training loss, averaged over the run.
        diverged: Whether the final loss is not finite.
        seconds: Wall-clock time; None where runs trained in lockstep.
        curve: Steps, losses and LRs at some of the steps.
    """

    task: str
    method: str
    detail: str
    seed: int
    ratio: float | None
    val_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    mean_train_loss: float | None
    diverged: bool
    seconds: float | None
    curve: dict[str, list[Any]] | None


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the comparison on a trainee, print the table and write results and report.

    Returns:
        The path of the report.
    """
    folder = make_folder(settings.output)
    policies = [load_policy(name) for name in settings.policies]
    records: list[RunRecord] = []
    tasks = [
        build_task(settings.trainee, settings.total_steps, OptimizerSpec(name), seed)
        for name in settings.optimizers
        for seed in range(settings.seeds)
    ]
    data = load_data(tasks[0].data)
    console.print(f"Data: {data.note}")
    for task in track(tasks, "Tuning experts, training and comparing"):
        name = f"{settings.trainee}, {task.spec.optimizer.name}"
        records += compare(task, name, policies, settings.hints, settings.peak)
    results = {
        "format": 1,
        "title": "Learned schedules against experts",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "data": {"name": data.name, "note": data.note},
        **collect_results(records),
    }
    return publish(results, folder)


def publish(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results.json`` and ``report.html``, print the table; returns the report's path."""
    write_json(folder / "results.json", results)
    report = write_report(results, folder / "report.html")
    console.print(results_table(results))
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    return report


def compare(
    task: Task,
    name: str,
    policies: Sequence[FrozenPolicy],
    hints: Iterable[float],
    peak: float | None = None,
    curves: bool = True,
) -> list[RunRecord]:
    """Run every method on one task and seed.

    Args:
        task: The task; its seed is the seed of all runs.
        name: How the task is called in the results.
        policies: Policies to run, each in a plain torch loop under ``LearnedLR``.
        hints: LRs their optimizers are made with.
        peak: Peak LR of the untuned experts; the usual default if None.
        curves: Whether the records keep curves.
    """
    search = search_experts(task)
    total = task.spec.total_steps
    records, matched = [], []
    for policy in policies:
        for hint in hints:
            record, mean_lr = run_policy(task, name, policy, hint, search.reference, curves)
            records.append(record)
            matched.append((policy.name, mean_lr))
    peak = peak or usual_peak(task.spec.optimizer)
    plans = [(kind, kind, peak) for kind in (*TUNED_KINDS, "constant")]
    # Hints make no difference to a policy that ignores them: one matched constant a policy.
    for policy_name, mean_lr in dict(matched).items():
        label = MATCHED if len(policies) == 1 else f"{MATCHED}: {policy_name}"
        plans.append((label, "constant", mean_lr))
    plans.append((TUNED, search.kinds[search.best], search.peaks[search.best]))
    outcome = run_schedules(task, [schedule(kind, total, top) for _, kind, top in plans])
    for k, (label, kind, top) in enumerate(plans):
        values = [x[k] for x in (outcome.val_loss, outcome.test_loss, outcome.test_accuracy)]
        rates = torch.tensor(schedule(kind, total, top))
        records.append(
            make_record(
                (name, label, f"{kind}, peak {top:.3g}", task.seed),
                search.reference,
                values,
                (outcome.losses[k], rates) if curves else (outcome.losses[k], None),
            )
        )
    return records


def usual_peak(optimizer: OptimizerSpec) -> float:
    """The peak LR people start from: 1e-3 for Adam, 1e-2 for SGD with momentum, 1e-1 without."""
    if optimizer.name != "sgd":
        return 1e-3
    return 1e-2 if optimizer.momentum else 1e-1


def run_policy(
    task: Task, name: str, policy: FrozenPolicy, hint: float, reference: float, curves: bool
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
    test_loss, accuracy = trainee.evaluate("test")
    record = make_record(
        (name, f"learned: {policy.name}", f"hint {hint:g}", task.seed),
        reference,
        [trainee.evaluate("val")[0], test_loss, accuracy],
        (torch.cat(losses), torch.tensor(rates) if curves else None),
        seconds,
    )
    return record, sum(rates) / len(rates)


def make_record(
    labels: tuple[str, str, str, int],
    reference: float,
    finals: Sequence[Tensor],
    history: tuple[Tensor, Tensor | None],
    seconds: float | None = None,
) -> RunRecord:
    """Build a record from labels, final losses, and the history of losses and LRs."""
    losses, rates = history
    val, test, accuracy = (_finite(float(x)) for x in finals)
    curve = None
    if rates is not None:
        index = torch.linspace(0, len(losses) - 1, min(_CURVE_POINTS, len(losses))).round().long()
        curve = {
            "step": index.tolist(),
            "loss": [_finite(x) for x in losses[index].tolist()],
            "lr": rates[index].tolist(),
        }
    return RunRecord(
        *labels,
        ratio=None if val is None else val / reference,
        val_loss=val,
        test_loss=test,
        test_accuracy=accuracy,
        mean_train_loss=_finite(float(losses.mean())),
        diverged=val is None,
        seconds=seconds,
        curve=curve,
    )


def collect_results(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Summarise records by method and add where and when they were made."""
    by_method: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    return {
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


def summarise(method: str, rows: Sequence[RunRecord]) -> dict[str, Any]:
    """Summarise the runs of a method; a diverged run counts as infinitely bad."""
    ratios = torch.tensor([math.inf if r.ratio is None else r.ratio for r in rows]).double()
    logs = torch.log(ratios)
    low, high = bootstrap_interval(logs)
    return {
        "method": method,
        "runs": len(rows),
        "tuning_runs": len(TUNED_KINDS) * N_PEAKS if method == TUNED else 0,
        "median_ratio": _finite(float(ratios.quantile(0.5))),
        "geometric_mean_ratio": _finite(float(logs.mean().exp())),
        "low": _finite(low),
        "high": _finite(high),
        "worst_ratio": _finite(float(ratios.max())),
        "wins": float((ratios < 1.0).double().mean()),
        "diverged": sum(r.diverged for r in rows),
        "mean_train_loss": _mean([r.mean_train_loss for r in rows]),
        "val_loss": _mean([r.val_loss for r in rows]),
        "test_accuracy": _mean([r.test_accuracy for r in rows]),
    }


def bootstrap_interval(logs: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the geometric mean of ratios from their logs, ``(n,)``."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(logs), (_BOOTSTRAP, len(logs)), generator=generator)
    means = logs[index].mean(1).sort().values
    low, high = round(0.025 * _BOOTSTRAP), round(0.975 * _BOOTSTRAP) - 1
    return float(means[low].exp()), float(means[high].exp())


def with_seed(task: Task, seed: int) -> Task:
    """The same task with another seed."""
    return replace(task, seed=seed)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
