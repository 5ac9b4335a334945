"""What hosts expect, and which schedulers meet it: ``python benchmarks/conformance.py``.

Runs lrenv.testing's checks over torch's schedulers, transformers' GreedyLR and ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table
from torch.optim import Optimizer, lr_scheduler
from transformers.optimization import GreedyLR

from lrenv import LearnedLR, load_policy
from lrenv.testing import CHECKS, Factory, run_checks
from lrenv.training.progress import console
from lrenv.training.runfolder import write_json


def _warm_cosine(optimizer: Optimizer, total_steps: int) -> lr_scheduler.SequentialLR:
    warm = total_steps // 10
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm),
        lr_scheduler.CosineAnnealingLR(optimizer, total_steps - warm),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [warm])


POLICY = load_policy()
SCHEDULERS: dict[str, Factory] = {
    "LearnedLR": lambda optimizer, total_steps: LearnedLR(optimizer, total_steps, POLICY),
    "ConstantLR": lambda optimizer, total_steps: lr_scheduler.ConstantLR(optimizer),
    "LinearLR": lambda optimizer, total_steps: lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0, total_steps
    ),
    "CosineAnnealingLR": lr_scheduler.CosineAnnealingLR,
    "SequentialLR": _warm_cosine,
    "OneCycleLR": lambda optimizer, total_steps: lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps
    ),
    "ReduceLROnPlateau": lambda optimizer, total_steps: lr_scheduler.ReduceLROnPlateau(optimizer),
    "GreedyLR": lambda optimizer, total_steps: GreedyLR(optimizer),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    output: Path = Path("runs/conformance.json")
    """Where the results go."""


def main(settings: Settings) -> None:
    """Run all checks, print the table, write the JSON file."""
    results = {name: run_checks(factory) for name, factory in SCHEDULERS.items()}
    table = Table("scheduler", f"passed of {len(CHECKS)}", "failed")
    for name, found in results.items():
        failed = [check for check, reason in found.items() if reason]
        table.add_row(name, str(len(CHECKS) - len(failed)), "; ".join(failed))
    console.print(table)
    write_json(settings.output, results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
