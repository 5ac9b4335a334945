"""Conditions that are rare in training or beyond it, and the guard: ``python benchmarks/harsh.py``.

The suite ``harsh`` as ``lrenv evaluate`` runs it, with and without rollback, and once more with a
controller that never cuts the LR where losses explode or are not finite.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import tyro
from rich.table import Table

from lrenv.controller import Controller
from lrenv.policies.frozen import load_policy
from lrenv.trainees.tasks import Task
from lrenv.training.compare import PolicyPart
from lrenv.training.evaluate import evaluate
from lrenv.training.expert_search import SearchResult
from lrenv.training.progress import console
from lrenv.training.records import MATCHED, OTHER_SEED, RunRecord
from lrenv.training.runfolder import read_json
from lrenv.training.settings import EvaluateSettings


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str = "default"
    """Policy, by the name of a shipped one or the path of its card."""
    seeds: int = 2
    """Seeds of each task."""
    output: Path = Path("runs/harsh")
    """Where results and report go; a benchmark that was stopped goes on from there."""
    workers: int = 1
    """Runs side by side."""


class Unguarded(PolicyPart):
    """A policy whose guard sees nothing."""

    @property
    def key(self) -> list[Any]:
        """See :class:`lrenv.training.compare.Part`."""
        return [*super().key, "unguarded"]

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """See :class:`lrenv.training.compare.Part`."""
        with mock.patch.object(Controller, "_inspect"):
            record, _ = super().run(task, name, search)  # and the constant at its mean LR
        return [record.relabelled(f"{record.method}, no guard")]


def main(settings: Settings) -> None:
    """Train, print two tables, write results and report."""
    chosen = EvaluateSettings(
        policies=(settings.policy,),
        suite="harsh",
        rollback=True,
        seeds=settings.seeds,
        output=settings.output,
        workers=settings.workers,
    )
    policy = load_policy(settings.policy)
    report = evaluate(chosen, [Unguarded(policy)])
    ratios: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for run in read_json(report.with_name("results.json"))["runs"]:
        ratios[run["task"]][run["method"]].append(run["ratio"])
    learned = f"learned: {policy.name}"
    methods = (learned, f"{learned}, no guard", f"{learned}, rollback", OTHER_SEED, "wsd", "cosine")
    methods += ("constant", f"{MATCHED}: {policy.name}")
    table = Table("condition", *methods)
    for task, found in ratios.items():
        table.add_row(task, *(_mean(found[method]) for method in methods))
    console.print(table)


def _mean(ratios: list[float | None]) -> str:
    """Geometric mean of ratios; None is a run that diverged."""
    logs = [math.inf if ratio is None else math.log(ratio) for ratio in ratios]
    mean = math.exp(sum(logs) / len(logs))
    return f"{mean:.2f}" if mean < math.inf else "∞"


if __name__ == "__main__":
    main(tyro.cli(Settings))
