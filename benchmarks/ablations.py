"""What cloning needs: ``python benchmarks/ablations.py --output runs/ablations``.

Actors are cloned from nothing on the same demonstrations: of fewer tasks, and without a group of
signals. Each labels the demonstrations of tasks held out, and schedules others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lrenv.files import make_folder
from lrenv.observation import FEATURES
from lrenv.policies.frozen import build_actor, load_policy
from lrenv.policies.network import Head
from lrenv.trainees.families import HELD_OUT_NUMBERS, short_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.clone import Demonstrations, collect, demonstrated_tasks, fit, label_error
from lrenv.training.expert_search import search_all
from lrenv.training.generalist import CUT, cut_means
from lrenv.training.outcome_ppo import WORST_RETURN, evaluate_actor
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.records import bootstrap_interval
from lrenv.training.runfolder import check_settings, read_json, write_json
from lrenv.training.settings import GeneralistSettings

TASKS = (30, 100, 300, 1000)
"""Numbers of tasks below all of them."""

SHIPPED = "default"
"""The policy that stands beside the clones."""

LABELLED, SCHEDULED = 100, 48
"""Tasks whose demonstrations are labelled, the last ones, and others whose runs are scheduled."""

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

RECIPE = GeneralistSettings(family="diverse", tasks=2400, last_clone_steps=2000)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    output: Path = Path("runs/ablations")
    """Run folder, with the demonstrations; a run that was stopped goes on from there."""
    workers: int = 1
    """Actors cloned side by side, and searches and demonstrations."""


@dataclass(frozen=True)
class Setup:
    """What makes the figures of a run folder, beside its settings."""

    recipe: GeneralistSettings = RECIPE
    features: tuple[str, ...] = FEATURES
    labelled: int = LABELLED
    scheduled: int = SCHEDULED


def main(settings: Settings) -> None:
    """Clone and measure each actor, print the table, write the JSON file."""
    torch.set_num_threads(1)
    folder = make_folder(settings.output)
    check_settings(folder, Setup(), free=set())
    tasks = list(demonstrated_tasks(RECIPE).values())
    n_tasks = len(tasks) - LABELLED
    variants: dict[str, tuple[int, tuple[str, ...]]] = {
        **{f"{n} tasks": (n, ()) for n in (n_tasks, *reversed(TASKS))},
        **{f"without {name}": (n_tasks, hidden) for name, hidden in SIGNALS.items()},
    }
    paths = {n: folder / f"{n.replace(' ', '-')}.json" for n in (*variants, SHIPPED)}
    missing = [name for name in variants if not paths[name].exists()]
    if missing:
        with Workers(settings.workers) as workers:
            scheduled = _scheduled()
            search_all([*tasks, *scheduled], workers)
            data = collect(folder, 0, None, RECIPE, workers).split(LABELLED * RECIPE.group)
            jobs = [
                (*variants[name], folder / "tensorboard" / paths[name].stem) for name in missing
            ]
            shipped = _measured(load_policy(SHIPPED).actor, data[1], scheduled)
            write_json(paths[SHIPPED], {"tasks": 0, **shipped})
            found = workers.starmap(_clone, jobs, data, scheduled)
            for name, result in zip(track(missing, "Actors"), found, strict=True):
                write_json(paths[name], result)
    results = {name: read_json(path) for name, path in paths.items()}
    _show(results)
    write_json(folder / "results.json", results)


def _scheduled() -> list[Task]:
    short = short_tasks(HELD_OUT_NUMBERS, RECIPE.family, RECIPE.longest_demonstration)
    return [task for _, task in islice(short, SCHEDULED)]


def _clone(
    n_tasks: int,
    hidden: tuple[str, ...],
    tensorboard: Path,
    data: tuple[Demonstrations, Demonstrations],
    scheduled: list[Task],
) -> dict[str, Any]:
    """Clone an actor that some features are hidden from, and measure it."""
    fitted, held_out = data
    torch.manual_seed(RECIPE.seed)
    actor = build_actor([name for name in FEATURES if not name.startswith(hidden)])
    with SummaryWriter(str(tensorboard)) as writer:
        fit(actor, fitted.rows(slice(n_tasks * RECIPE.group)), held_out, RECIPE, 0, writer)
    return {"tasks": n_tasks, **_measured(actor, held_out, scheduled)}


def _measured(actor: Head, held_out: Demonstrations, scheduled: list[Task]) -> dict[str, Any]:
    """Label error of an actor on each task held out, and the log ratios of its runs."""
    rows = (
        held_out.rows(slice(k, k + RECIPE.group))
        for k in range(0, len(held_out.tokens), RECIPE.group)
    )
    return {
        "errors": [label_error(actor, part) for part in rows],
        "log_ratios": evaluate_actor(actor, scheduled).clamp_max(-WORST_RETURN).tolist(),
    }


def _show(results: dict[str, Any]) -> None:
    whole = torch.tensor(next(iter(results.values()))["errors"])
    ratios = ("mean ratio", "told validation", f"cut at {CUT}", "told validation")
    table = Table("actor", "tasks", "label error", "× that of the first (95 %)", *ratios)
    for name, result in results.items():
        errors = torch.tensor(result["errors"])
        worse = torch.log(errors / whole)
        low, high = bootstrap_interval([[value] for value in worse.tolist()])
        interval = f"{worse.mean().exp():.3f} ({low:.3f}-{high:.3f})"
        logs = torch.tensor(result["log_ratios"])
        means = torch.cat([logs.mean(0).exp(), cut_means(logs)])
        figures = (f"{errors.mean():.4f}", interval, *(f"{mean:.3f}" for mean in means))
        table.add_row(name, str(result["tasks"]), *figures)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
