"""The general policy: tuned experts, cloning with recovery labels, PPO on the outcome, export."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.observation import FEATURES, columns_of
from lrenv.policies.frozen import FrozenPolicy, build_actor, load_policy, save_policy
from lrenv.policies.network import Head
from lrenv.trainees.families import HELD_OUT_NUMBERS, training_task
from lrenv.trainees.tasks import Task
from lrenv.training.clone import clone, demonstrated_tasks
from lrenv.training.expert_search import search_all
from lrenv.training.outcome_ppo import WORST_RETURN, OutcomePPO, evaluate_actor
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, progress_bar
from lrenv.training.runfolder import check_settings
from lrenv.training.settings import GeneralistSettings

EXPORT_NAME = "default"
_PLACE = {"output", "workers", "ray_address"}
_FIRST_PPO_TASK = 10**5  # and as many further on for each seed


def train_generalist(settings: GeneralistSettings) -> Path:
    """Train a general policy; a run that was stopped goes on from its run folder.

    Returns:
        The path of the exported policy's card.

    Raises:
        InputError: The run folder belongs to other settings, or cannot be written; or there is no
            Ray for the workers.
    """
    folder = make_folder(settings.output)
    _check_counts(settings)
    check_settings(folder, settings, free=_PLACE | {"hours", "updates"})
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    start = load_policy(settings.start) if settings.start else None
    unknown = [start for start in settings.hidden if not columns_of(start)]
    if unknown:
        raise InputError(
            f"Expected hidden features to begin like one of {', '.join(FEATURES)}; got "
            f"{', '.join(unknown)}."
        )
    actor = build_actor([name for name in FEATURES if not name.startswith(settings.hidden)])
    held_out = [
        training_task(i, settings.family) for i in HELD_OUT_NUMBERS[: 2 * settings.held_out]
    ]
    selection, fresh = held_out[: settings.held_out], held_out[settings.held_out :]
    if settings.hours > 0:
        _check_short_tasks(settings)
    with (
        Workers(settings.workers, settings.ray_address) as workers,
        SummaryWriter(str(folder / "tensorboard")) as writer,
    ):
        demonstrated = list(demonstrated_tasks(settings).values()) if settings.rounds else []
        search_all([*demonstrated, *selection, *fresh], workers)
        clone(folder, actor, settings, writer, workers, start)
        found = {"start": _measure(actor, selection, fresh, workers)}
        console.print(f"Start of PPO: {found['start']}")
        save_policy(folder, f"{EXPORT_NAME}-start", actor, _card(settings, start, found))
        if settings.hours > 0:
            at_start = found["start"]["selection_tasks"]["geometric_mean"]
            counts = fine_tune(folder, actor, selection, at_start, settings, writer, workers)
            found["ppo"] = _measure(actor, selection, fresh, workers) | counts
            console.print(f"PPO: {found['ppo']}")
    return save_policy(folder, EXPORT_NAME, actor, _card(settings, start, found))


def ppo_tasks(settings: GeneralistSettings, updates: int) -> Iterator[Task]:
    """The tasks that PPO goes on with behind a number of updates; none comes twice."""
    numbers = count(_FIRST_PPO_TASK * (1 + settings.seed))
    drawn = (training_task(i, settings.family) for i in numbers)
    short = (task for task in drawn if task.spec.total_steps <= settings.longest_run)
    return islice(short, updates * settings.groups_per_update, None)


def _check_short_tasks(settings: GeneralistSettings) -> None:
    tasks = (training_task(i, settings.family) for i in HELD_OUT_NUMBERS)
    shortest = min(task.spec.total_steps for task in tasks)
    if shortest > settings.longest_run:
        raise InputError(
            f"Expected tasks of at most {settings.longest_run} steps for PPO, got {shortest} and "
            "more; raise longest_run."
        )


def _check_counts(settings: GeneralistSettings) -> None:
    least = {"held_out": 1, "group": 2, "groups_per_update": 1, "minibatch": 1, "tasks": 1}
    least |= {"rounds": 0 if settings.start else 1}
    for name, bound in least.items():
        if getattr(settings, name) < bound:
            raise InputError(
                f"Expected {name} of at least {bound}, got {getattr(settings, name)}; raise it."
            )
    most = len(HELD_OUT_NUMBERS) // 2
    if settings.held_out > most:
        raise InputError(f"Expected held_out of at most {most}, got {settings.held_out}; lower it.")


def summary(ratios: Tensor) -> dict[str, float]:
    """Summarise log ratios as ratios; in the mean a diverged run counts as e²."""
    finite = ratios[ratios.isfinite()]
    return {
        "geometric_mean": round(ratios.clamp_max(-WORST_RETURN).mean().exp().item(), 4),
        "median": round(ratios.quantile(0.5).exp().item(), 4),
        "worst_finite": round(finite.max().exp().item(), 4) if len(finite) else math.inf,
        "wins": round((ratios < 0).float().mean().item(), 4),
        "diverged": int(ratios.numel() - finite.numel()),
    }


def fine_tune(
    folder: Path,
    actor: Head,
    selection: list[Task],
    at_start: float,
    settings: GeneralistSettings,
    writer: SummaryWriter,
    workers: Workers,
) -> dict[str, float]:
    """Fine-tune the clone by PPO within the budget.

    Leaves the actor in place that did best on the selection tasks, where the clone's mean ratio is
    ``at_start``.

    Returns:
        The number of updates, the selected one, and the hours spent.
    """
    ppo = OutcomePPO(actor, settings, writer, workers)
    path, best_path = folder / "ppo.pt", folder / "best.pt"
    if path.exists():
        state = ppo.load(path)
        spent, best = float(state["spent"]), float(state["best"])
    else:
        spent, best = 0.0, at_start
        ppo.save(best_path)
        ppo.save(path, spent=spent, best=best)
    tasks = ppo_tasks(settings, ppo.updates)
    with progress_bar() as bar:
        line = bar.add_task(
            "PPO (seconds)", total=settings.hours * 3600, completed=int(spent), status=""
        )
        while spent < settings.hours * 3600 and ppo.updates < settings.updates:
            began = time.monotonic()
            sample = list(islice(tasks, settings.groups_per_update))
            gap = ppo.update(sample, left=1.0 - spent / (settings.hours * 3600))
            if ppo.updates % settings.evaluate_every == 0:
                now = summary(evaluate_actor(ppo.average, selection, workers))
                for name, value in now.items():
                    writer.add_scalar(f"selection/{name}", value, ppo.updates)
                console.print(f"Update {ppo.updates}, selection tasks: {now}")
                if now["geometric_mean"] < best:
                    best = now["geometric_mean"]
                    ppo.save(best_path)
            spent += time.monotonic() - began
            ppo.save(path, spent=spent, best=best)
            bar.update(line, completed=spent, status=f"update {ppo.updates}, gap {gap:.3f}")
    updates = ppo.updates
    ppo.load(best_path)
    actor.load_state_dict(ppo.average.state_dict())
    return {"updates": updates, "selected_update": ppo.updates, "hours": round(spent / 3600, 3)}


def _measure(
    actor: Head, selection: list[Task], fresh: list[Task], workers: Workers
) -> dict[str, Any]:
    return {
        "selection_tasks": summary(evaluate_actor(actor, selection, workers)),
        "fresh_tasks": summary(evaluate_actor(actor, fresh, workers)),
    }


def _card(
    settings: GeneralistSettings, start: FrozenPolicy | None, found: dict[str, Any]
) -> dict[str, Any]:
    recipe = {k: v for k, v in asdict(settings).items() if k not in _PLACE}
    recipe["start"] = start and {k: v for k, v in start.card.items() if k != "features"}
    return {
        "preset": "scale-free",
        "made_by": "lrenv train generalist",
        "settings": recipe,
        "training_families": f"{settings.family} tasks of lrenv.trainees.families",
        "ratio_to_tuned_expert": dict(found),
    }
