"""What cloning needs: ``python benchmarks/ablations.py --output runs/ablations``.

Actors are cloned from nothing on the same demonstrations: of fewer tasks, and without a group of
signals. Each sets the LR of further tasks of the training family, without and with a validation
loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lrenv.files import make_folder
from lrenv.observation import FEATURES
from lrenv.policies.frozen import build_actor
from lrenv.trainees.families import training_task
from lrenv.trainees.tasks import Task
from lrenv.training.clone import collect, demonstrated_tasks, fit
from lrenv.training.expert_search import search_all
from lrenv.training.generalist import summary
from lrenv.training.outcome_ppo import WORST_RETURN, evaluate_actor
from lrenv.training.parallel import Workers
from lrenv.training.progress import console
from lrenv.training.records import bootstrap_interval
from lrenv.training.runfolder import read_json, write_json
from lrenv.training.settings import GeneralistSettings

TASKS = (40, 60, 140, 260, 500, 1000)
"""Numbers of tasks, of whole files of demonstrations."""

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
}
"""Groups of signals by the beginnings of their features' names."""


RECIPE = GeneralistSettings(
    family="balanced",
    tasks=max(TASKS),
    group=8,
    rounds=1,
    last_clone_steps=2000,
    longest_demonstration=800,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    output: Path = Path("runs/ablations")
    """Run folder; a run that was stopped goes on from there."""
    demonstrations: Path = Path("runs/generalist")
    """Run folder of ``lrenv train generalist`` that holds demonstrations of the recipe's tasks."""
    held_out: int = 64
    """Tasks that the actors are measured on."""
    first_held_out: int = 1064
    """The number of the first of them; tasks before it may have selected a policy."""
    workers: int = 1
    """Runs side by side."""


def variants() -> dict[str, GeneralistSettings]:
    """Settings of each actor by its name; the one with all tasks and signals comes first."""
    fewer = {f"{n} tasks": replace(RECIPE, tasks=n) for n in reversed(TASKS)}
    without = {f"without {name}": replace(RECIPE, hidden=h) for name, h in SIGNALS.items()}
    return {**fewer, **without}


def main(settings: Settings) -> None:
    """Clone and measure each actor, print the table, write the JSON file."""
    torch.set_num_threads(1)
    numbers = range(settings.first_held_out, settings.first_held_out + settings.held_out)
    held_out = [training_task(i, RECIPE.family) for i in numbers]
    results: dict[str, Any] = {}
    with Workers(settings.workers) as workers:
        search_all(held_out, workers)
        for name, recipe in variants().items():
            path = make_folder(settings.output) / f"{name.replace(' ', '-')}.json"
            if not path.exists():
                logs = _measure(recipe, settings, held_out, workers)
                write_json(path, {"demonstrated": len(demonstrated_tasks(recipe)), "logs": logs})
            results[name] = read_json(path)
            console.print(f"{name}: {summary(torch.tensor(results[name]['logs']))}")
    _show(results)
    write_json(settings.output / "results.json", results)


def _measure(
    recipe: GeneralistSettings, settings: Settings, held_out: list[Task], workers: Workers
) -> list[list[float]]:
    """Log ratios to the tuned expert of each task, without and with a validation loss."""
    torch.manual_seed(recipe.seed)
    actor = build_actor([name for name in FEATURES if not name.startswith(recipe.hidden)])
    data = collect(settings.demonstrations, 0, None, recipe, workers)
    with SummaryWriter(str(settings.output / "tensorboard")) as writer:
        fit(actor, data, recipe, 0, writer)
    logs: list[list[float]] = (
        evaluate_actor(actor, held_out, workers).clamp_max(-WORST_RETURN).tolist()
    )
    return logs


def _show(results: dict[str, Any]) -> None:
    whole = torch.tensor(next(iter(results.values()))["logs"])
    table = Table("actor", "tasks", "mean ratio", "median", "worse by (95 %)")
    for name, result in results.items():
        logs = torch.tensor(result["logs"])
        found, worse = summary(logs), (logs - whole).mean().exp()
        low, high = bootstrap_interval((logs - whole).tolist())
        figures = (f"{found[key]:.3f}" for key in ("geometric_mean", "median"))
        interval = f"{worse:.3f} ({low:.3f}-{high:.3f})"
        table.add_row(name, str(result["demonstrated"]), *figures, interval)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
