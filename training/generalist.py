"""The general policy: tuned experts, cloning with recovery labels, PPO on the outcome, export."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
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
from lrenv.trainees.families import HELD_OUT_NUMBERS, short_tasks, training_task
from lrenv.trainees.tasks import Task
from lrenv.training.clone import clone, demonstrated_tasks
from lrenv.training.expert_search import search_all
from lrenv.training.outcome_ppo import (
    WORST_RETURN,
    OutcomePPO,
    evaluate_actor,
    final_losses,
    log_changes,
)
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, progress_bar
from lrenv.training.runfolder import check_settings
from lrenv.training.settings import GeneralistSettings, check_least

EXPORT_NAME = "default"
CUT = 1.35
"""What a ratio counts as at most in :func:`cut_means`, and a change of a loss in selection."""
_LOG_CUT = math.log(CUT)

_PLACE = {"output", "workers", "ray_address"}
_MEASURING, _SELECTING = HELD_OUT_NUMBERS[:500], HELD_OUT_NUMBERS[500:]
_FIRST_PPO_TASK = 10**5  # and as many further on for each seed
_LAST_SEED = 18  # whose tasks end where the family "broad" begins


def train_generalist(settings: GeneralistSettings) -> Path:
    """Train a general policy; a run that was stopped goes on from its run folder.

    Returns:
        The path of the exported policy's card.

    Raises:
        InputError: The run folder belongs to other settings, or cannot be written; or there is no
            Ray for the workers.
    """
    _check_counts(settings)
    training_task(0, settings.family)  # refuses one that is not there
    start = load_policy(settings.start) if settings.start else None
    unknown = [start for start in settings.hidden if not columns_of(start)]
    if unknown:
        raise InputError(
            f"Expected hidden features to begin like one of {', '.join(FEATURES)}; got "
            f"{', '.join(unknown)}."
        )
    if settings.hours > 0:
        _check_short_tasks(settings)
    demonstrated = list(demonstrated_tasks(settings).values()) if settings.rounds else []
    held_out = [training_task(i, settings.family) for i in _MEASURING[: settings.held_out]]
    folder = make_folder(settings.output)
    free = _PLACE | {"hours", "updates"}
    check_settings(folder, settings, free, start_sha256=start and start.card["sha256"])
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    actor = build_actor([name for name in FEATURES if not name.startswith(settings.hidden)])
    with (
        Workers(settings.workers, settings.ray_address) as workers,
        SummaryWriter(str(folder / "tensorboard")) as writer,
    ):
        search_all([*demonstrated, *held_out], workers)
        clone(folder, actor, settings, writer, workers, start)
        found: dict[str, Any] = {"start": summary(evaluate_actor(actor, held_out, workers))}
        console.print(f"Start of PPO: {found['start']}")
        save_policy(folder, f"{EXPORT_NAME}-start", actor, _card(settings, start, found))
        if settings.hours > 0:
            counts = fine_tune(folder, actor, settings, writer, workers)
            found["ppo"] = summary(evaluate_actor(actor, held_out, workers)) | counts
            console.print(f"PPO: {found['ppo']}")
    return save_policy(folder, EXPORT_NAME, actor, _card(settings, start, found))


def ppo_tasks(settings: GeneralistSettings, updates: int) -> Iterator[Task]:
    """The tasks that PPO goes on with behind a number of updates; none comes twice."""
    numbers = count(_FIRST_PPO_TASK * (1 + settings.seed))
    return islice(_short(numbers, settings), updates * settings.groups_per_update, None)


def selection_tasks(settings: GeneralistSettings) -> list[Task]:
    """The tasks that the export is selected on."""
    return list(islice(_short(_SELECTING, settings), settings.selection))


def _short(numbers: Iterable[int], settings: GeneralistSettings) -> Iterator[Task]:
    return (task for _, task in short_tasks(numbers, settings.family, settings.longest_run))


def _check_short_tasks(settings: GeneralistSettings) -> None:
    found = len(selection_tasks(settings))
    if found < settings.selection:
        raise InputError(
            f"Expected {settings.selection} tasks of at most {settings.longest_run} steps to "
            f"select on, got {found}; raise longest_run or lower selection."
        )


def _check_counts(settings: GeneralistSettings) -> None:
    check_least(
        settings,
        held_out=1,
        selection=1,
        tasks=1,
        rounds=0,
        seed=0,
        group=2,
        groups_per_update=1,
        minibatch=1,
        epochs=1,
        clone_batch=1,
        evaluate_every=1,
    )
    most = {"held_out": len(_MEASURING), "selection": len(_SELECTING), "seed": _LAST_SEED}
    for name, bound in most.items():
        if getattr(settings, name) > bound:
            raise InputError(
                f"Expected {name} of at most {bound}, got {getattr(settings, name)}; lower it."
            )


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


def cut_means(ratios: Tensor) -> Tensor:
    """Geometric means over tasks of log ratios ``(t, ...)`` in which no ratio counts above ``CUT``.

    A lucky search, or one lost run, counts for less in them.
    """
    return ratios.clamp_max(_LOG_CUT).mean(0).exp()


def fine_tune(
    folder: Path,
    actor: Head,
    settings: GeneralistSettings,
    writer: SummaryWriter,
    workers: Workers,
) -> dict[str, float]:
    """Fine-tune the clone by PPO within the budget.

    Leaves the actor in place that did best on the selection tasks. They are compared with the
    clone's own runs of them, so that many can be had without searching for experts.

    Returns:
        The number of updates, the selected one, its losses on the selection tasks over those at the
        start, and the hours spent.
    """
    ppo = OutcomePPO(actor, settings, writer, workers)
    path, best_path = folder / "ppo.pt", folder / "best.pt"
    selection = selection_tasks(settings)
    if path.exists():
        state = ppo.load(path)
        spent, best, before = float(state["spent"]), float(state["best"]), state["before"]
    else:
        spent, best, before = 0.0, 0.0, final_losses(actor, selection, workers)
        ppo.save(best_path, change=best)
        ppo.save(path, spent=spent, best=best, before=before)
    tasks, budget = ppo_tasks(settings, ppo.updates), settings.hours * 3600
    with progress_bar() as bar:
        line = bar.add_task("PPO (seconds)", total=budget, completed=int(spent), status="")
        while spent < budget and ppo.updates < settings.updates:
            began = time.monotonic()
            sample = list(islice(tasks, settings.groups_per_update))
            gap = ppo.update(sample, left=1.0 - spent / budget)
            used = spent + time.monotonic() - began
            ended = used >= budget or ppo.updates >= settings.updates
            if ended or ppo.updates % settings.evaluate_every == 0:
                losses = final_losses(ppo.average, selection, workers)
                change = log_changes(losses, before).clamp(-_LOG_CUT, _LOG_CUT).mean().item()
                writer.add_scalar("selection/log_ratio_to_start", change, ppo.updates)
                console.print(
                    f"Update {ppo.updates}: losses of selection tasks are {math.exp(change):.4f} "
                    "of those at the start"
                )
                if change < best:
                    best = change
                    ppo.save(best_path, change=best)
            spent += time.monotonic() - began
            ppo.save(path, spent=spent, best=best, before=before)
            bar.update(line, completed=spent, status=f"update {ppo.updates}, gap {gap:.3f}")
    updates = ppo.updates
    change = ppo.load(best_path)["change"]
    actor.load_state_dict(ppo.average.state_dict())
    return {
        "updates": updates,
        "selected_update": ppo.updates,
        "selection_ratio_to_start": round(math.exp(change), 4),
        "hours": round(spent / 3600, 3),
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
        "training_families": f"{settings.family} tasks"
        + ("" if ":" in settings.family else " of lrenv.trainees.families"),
        "ratio_to_tuned_expert": dict(found),
    }
