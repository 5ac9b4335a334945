"""A comparison for trainees whose runs take minutes: a grid on one seed, then few runs on others.

Experts run at the usual default peak and at their best peak of a grid on the first seed, which
favours them there; the learned policy runs as it is. Every run is one file, so that a stopped
comparison goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.policies.experts import schedule
from lrenv.policies.frozen import load_policy
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.methods import learned_lr
from lrenv.training.progress import console, progress_bar
from lrenv.training.records import MATCHED
from lrenv.training.runfolder import read_json, write_json

_CURVES = ("losses", "lrs")

Measure = Callable[[SingleTrainee], dict[str, float]]


@dataclass(frozen=True)
class LongRunsSettings:
    """Settings of the comparison."""

    output: Path
    """Where the runs and the results go; a stopped comparison goes on from there."""
    total_steps: int = 100
    """Length of a run in optimizer steps."""
    seeds: int = 2
    """Seeds of the learned policy and of the best expert."""
    kinds: tuple[str, ...] = ("constant", "cosine", "linear")
    """Experts."""
    peaks: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    """Peaks of the grid; the first is the usual default."""
    policies: tuple[str, ...] = ("default",)
    """Learned policies, by name or path."""
    device: str = "cpu"
    """Where the runs live, such as cpu or cuda."""
    all_seeds: bool = False
    """Run the experts at their default and best peaks on all seeds, not the best of them alone."""


@dataclass(frozen=True)
class Method:
    """A way to set the LR: an expert and its peak, or a policy and no peak."""

    label: str
    driver: str
    peak: float | None = None


def compare_long_runs(task: Task, settings: LongRunsSettings, measure: Measure) -> Path:
    """Run what is not there yet, print the table and write ``results.json``.

    Args:
        task: The task; its seed is replaced.
        settings: The settings.
        measure: What else is measured of a trained run.

    Returns:
        The path of the results.
    """
    torch.set_num_threads(1)
    if settings.seeds < 1 or not (settings.kinds and settings.peaks and settings.policies):
        raise InputError(
            f"Expected at least one seed, expert, peak and policy, got {settings.seeds}, "
            f"{settings.kinds}, {settings.peaks} and {settings.policies}; name some."
        )
    folder = make_folder(settings.output)
    data = load_data(task.data)
    console.print(f"Data: {data.name}, {data.note}", markup=False)

    def run(method: Method, seed: int) -> dict[str, Any]:
        return run_once(replace(task, seed=seed), method, measure, settings)

    grid = {
        (kind, peak): run(Method(kind, kind, peak), 0)
        for peak in settings.peaks
        for kind in settings.kinds
    }
    learned = [run(method, seed) for method, seed in _learned(settings)]
    rows = list(learned)
    default = settings.peaks[0]
    rows += [{**grid[kind, default], "method": f"{kind}, default peak"} for kind in settings.kinds]
    best_peaks = {
        kind: min(settings.peaks, key=lambda peak: _loss(grid[kind, peak]))
        for kind in settings.kinds
    }
    tuned = [Method(f"{kind}, tuned peak", kind, peak) for kind, peak in best_peaks.items()]
    rows += [{**grid[m.driver, m.peak or default], "method": m.label} for m in tuned]
    for row in learned:
        label = f"{MATCHED}: {row['driver']}"
        rows.append(run(Method(label, "constant", row["mean_lr"]), row["seed"]))
    winner = min(tuned, key=lambda m: _loss(grid[m.driver, m.peak or default]))
    repeated = [winner]
    if settings.all_seeds:
        defaults = [Method(f"{k}, default peak", k, default) for k in settings.kinds]
        repeated = [*defaults, *tuned]
    rows += [run(m, seed) for m in repeated for seed in range(1, settings.seeds)]
    results = {
        "task": task.to_json(),
        "data": {"name": data.name, "note": data.note},
        "torch": torch.__version__,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "tuning_runs": len(grid),
        "runs": [{**row, **{k: _rounded(row[k]) for k in _CURVES}} for row in rows],
        "grid": [{k: v for k, v in row.items() if k not in _CURVES} for row in grid.values()],
    }
    write_json(folder / "results.json", results)
    console.print(_table(rows))
    return folder / "results.json"


def run_once(
    task: Task, method: Method, measure: Measure, settings: LongRunsSettings
) -> dict[str, Any]:
    """Train one run, or read its record."""
    policy = None if method.peak else load_policy(method.driver)
    name = json.dumps(
        [
            task.to_json(),
            load_data(task.data).name,
            method.driver,
            method.peak,
            policy and policy.card["sha256"],
            _device_name(settings.device),
            torch.__version__,
        ]
    )
    path = settings.output / "runs" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return {**read_json(path), "method": method.label}
    trainee, total = build_trainee(task, settings.device), task.spec.total_steps
    rates = schedule(method.driver, total, method.peak) if method.peak else []
    scheduler = learned_lr(trainee, policy) if policy else None
    losses, used, spent = [], [], 0.0
    halfway: float | None = None
    with progress_bar() as bar:
        line = bar.add_task(f"{escape(method.label)}, seed {task.seed}", total=total, status="")
        for step in range(total):
            began = time.perf_counter()
            loss = trainee.backward()
            used.append(
                float(trainee.optimizer.param_groups[0]["lr"]) if scheduler else rates[step]
            )
            if scheduler:
                trainee.optimizer.step()
                scheduler.step(loss)
            else:
                trainee.update(torch.tensor([rates[step]]))
            losses.append(float(loss))
            spent += time.perf_counter() - began
            bar.update(line, completed=step + 1, status=f"loss {losses[-1]:.4f}")
            if step + 1 == total // 2:
                halfway = float(trainee.evaluate("val")[0])
    record = {
        "method": method.label,
        "driver": method.driver,
        "peak": method.peak,
        "seed": task.seed,
        "val_loss_half": halfway,
        "val_loss": float(trainee.evaluate("val")[0]),
        "device": _device_name(settings.device),
        "seconds": spent,
        "mean_lr": sum(used) / total,
        "losses": losses,
        "lrs": used,
        **measure(trainee),
    }
    write_json(path, record)
    return record


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if "cuda" in device else device


def _learned(settings: LongRunsSettings) -> Iterator[tuple[Method, int]]:
    for policy in settings.policies:
        for seed in range(settings.seeds):
            yield Method(f"learned: {policy}", policy), seed


def _loss(record: Mapping[str, Any]) -> float:
    loss = float(record["val_loss"])
    return loss if loss == loss else float("inf")


def _table(rows: list[dict[str, Any]]) -> Table:
    keys = [k for k, v in rows[0].items() if isinstance(v, float) and k != "mean_lr"]
    table = Table("method", "peak", "seed", *keys)
    for row in rows:
        peak = "–" if row["peak"] is None else f"{row['peak']:.2g}"
        figures = (f"{row[k]:.4g}" for k in keys)
        table.add_row(escape(row["method"]), peak, str(row["seed"]), *figures)
    return table
