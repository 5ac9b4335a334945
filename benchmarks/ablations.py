"""What cloning needs: ``python benchmarks/ablations.py --output runs/ablations``.

Actors are cloned from nothing on the same demonstrations: of fewer tasks, and without a group of
signals. Each labels the demonstrations of tasks held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lrenv.files import make_folder
from lrenv.observation import FEATURES
from lrenv.policies.frozen import build_actor, load_policy
from lrenv.training.clone import Demonstrations, collect, demonstrated_tasks, fit, label_error
from lrenv.training.parallel import Workers
from lrenv.training.progress import console
from lrenv.training.records import bootstrap_interval
from lrenv.training.runfolder import check_settings, read_json, write_json
from lrenv.training.settings import GeneralistSettings

TASKS = (30, 60, 120, 240)
"""Numbers of tasks below all of them."""

HELD_OUT = 100
"""Tasks that the actors are measured on, the last ones."""

SIGNALS: dict[str, tuple[str, ...]] = {
    "losses": ("loss", "window_loss"),
    "validation": ("val_",),
    "gradient norms": ("grad_norm", "window_grad_norm"),
    "LC sensitivities": ("lc_", "window_lc"),
    "cosines": ("momentum_cos", "descent_cos", "gradient_cos"),
    "update sizes": ("update_ratio",),
    "distance from the start": ("weight_growth", "distance", "straightness", "dog"),
    "window": ("window_",),
    "optimizer": ("optimizer_",),
    "epochs": ("epoch",),
}
"""Groups of signals by the beginnings of their features' names."""

START = "balanced"
"""Policy that acts in half of the demonstrations."""

RECIPE = GeneralistSettings(start=START)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    output: Path = Path("runs/ablations")
    """Run folder, with the demonstrations; a run that was stopped goes on from there."""
    workers: int = 1
    """Demonstrations gathered side by side."""


def main(settings: Settings) -> None:
    """Clone and measure each actor, print the table, write the JSON file."""
    torch.set_num_threads(1)
    check_settings(make_folder(settings.output), RECIPE, free={"output"})
    with Workers(settings.workers) as workers:
        actor = load_policy(START).actor
        data, held_out = collect(settings.output, 0, actor, RECIPE, workers).split(
            HELD_OUT * RECIPE.group
        )
    n_tasks = len(demonstrated_tasks(RECIPE)) - HELD_OUT
    variants: dict[str, tuple[int, tuple[str, ...]]] = {
        **{f"{n} tasks": (n, ()) for n in (n_tasks, *reversed(TASKS))},
        **{f"without {name}": (n_tasks, hidden) for name, hidden in SIGNALS.items()},
    }
    results: dict[str, Any] = {}
    for name, (n, hidden) in variants.items():
        path = settings.output / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            part, _ = data.split(len(data.tokens) - n * RECIPE.group)
            write_json(path, {"tasks": n, "errors": _measure(part, held_out, hidden, settings)})
        results[name] = read_json(path)
        console.print(f"{name}: {_mean(results[name]):.4f}")
    _show(results)
    write_json(settings.output / "results.json", results)


def _measure(
    data: Demonstrations, held_out: Demonstrations, hidden: tuple[str, ...], settings: Settings
) -> list[float]:
    """Error of the labels of each task held out, see ``label_error``."""
    torch.manual_seed(RECIPE.seed)
    actor = build_actor([name for name in FEATURES if not name.startswith(hidden)])
    with SummaryWriter(str(settings.output / "tensorboard")) as writer:
        fit(actor, data, held_out, RECIPE, 0, writer)
    rows = (
        held_out.rows(slice(k, k + RECIPE.group))
        for k in range(0, len(held_out.tokens), RECIPE.group)
    )
    return [label_error(actor, part) for part in rows]


def _mean(result: dict[str, Any]) -> float:
    return sum(result["errors"]) / len(result["errors"])


def _show(results: dict[str, Any]) -> None:
    whole = torch.tensor(next(iter(results.values()))["errors"])
    table = Table("actor", "tasks", "label error", "× that of the first (95 %)")
    for name, result in results.items():
        worse = torch.log(torch.tensor(result["errors"]) / whole)
        low, high = bootstrap_interval([[value] for value in worse.tolist()])
        interval = f"{worse.mean().exp():.3f} ({low:.3f}-{high:.3f})"
        table.add_row(name, str(result["tasks"]), f"{_mean(result):.4f}", interval)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
