"""The general policy: tuned experts, cloning with recovery labels, PPO on the outcome, export."""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import save_policy
from lrenv.policies.network import Head
from lrenv.trainees.families import Task, training_task
from lrenv.training.clone import clone
from lrenv.training.expert_search import search_experts
from lrenv.training.outcome_ppo import OutcomePPO, evaluate_actor
from lrenv.training.progress import console, progress_bar, track
from lrenv.training.runfolder import check_settings, make_folder
from lrenv.training.settings import GeneralistSettings

EXPORT_NAME = "default"


def train_generalist(settings: GeneralistSettings) -> Path:
    """Train a general policy; a run that was stopped goes on from its run folder.

    Returns:
        The path of the exported policy's card.

    Raises:
        InputError: The run folder belongs to other settings, or cannot be written.
    """
    folder = make_folder(settings.output)
    _check_counts(settings)
    check_settings(folder, settings, free={"output", "hours", "updates"})
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    actor = Head("scale-free", len(FEATURES))
    tasks = [training_task(i) for i in range(settings.tasks + settings.held_out)]
    for task in track(tasks, "Tuned experts of the training tasks"):
        search_experts(task)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        clone(folder, actor, settings, writer)
        held_out = tasks[settings.tasks :]
        measured = {"clone": summary(evaluate_actor(actor, held_out))}
        console.print(f"Clone on {len(held_out)} held-out tasks: {measured['clone']}")
        save_policy(folder, f"{EXPORT_NAME}-clone", actor, _card(settings, measured))
        if settings.hours > 0:
            fine_tune(folder, actor, tasks, settings, writer, measured)
    return save_policy(folder, EXPORT_NAME, actor, _card(settings, measured))


def _check_counts(settings: GeneralistSettings) -> None:
    least = {"tasks": settings.groups_per_update, "held_out": 1, "group": 2, "groups_per_update": 1}
    for name, count in least.items():
        if getattr(settings, name) < count:
            raise InputError(
                f"Expected {name} of at least {count}, got {getattr(settings, name)}; "
                "lower groups_per_update or raise it."
            )


def summary(ratios: Tensor) -> dict[str, float]:
    """Geometric mean, median and worst of log ratios, as ratios, and the share below 1."""
    return {
        "geometric_mean": round(ratios.mean().exp().item(), 4),
        "median": round(ratios.quantile(0.5).exp().item(), 4),
        "worst": round(ratios.max().exp().item(), 4),
        "wins": round((ratios < 0).float().mean().item(), 4),
    }


def fine_tune(
    folder: Path,
    actor: Head,
    tasks: list[Task],
    settings: GeneralistSettings,
    writer: SummaryWriter,
    measured: dict[str, dict[str, float]],
) -> None:
    """Fine-tune the clone by PPO within the budget, and leave the best evaluated actor in place."""
    ppo = OutcomePPO(actor, settings, writer)
    path, best_path = folder / "ppo.pt", folder / "best.pt"
    spent, best = 0.0, measured["clone"]["geometric_mean"]
    if path.exists():
        state = ppo.load(path)
        spent, best = float(state["spent"]), float(state["best"])  # type: ignore[arg-type]
    else:
        ppo.save(best_path)
        ppo.save(path, spent=spent, best=best)
    with progress_bar() as bar:
        line = bar.add_task(
            "PPO (seconds)", total=settings.hours * 3600, completed=int(spent), status=""
        )
        while spent < settings.hours * 3600 and ppo.updates < settings.updates:
            began = time.monotonic()
            draw = random.Random(settings.seed * 10**6 + ppo.updates)
            sample = draw.sample(tasks[: settings.tasks], settings.groups_per_update)
            ratio = ppo.update(sample, left=1.0 - spent / (settings.hours * 3600))
            if ppo.updates % settings.evaluate_every == 0:
                now = summary(evaluate_actor(ppo.average, tasks[settings.tasks :]))
                for name, value in now.items():
                    writer.add_scalar(f"held_out/{name}", value, ppo.updates)
                console.print(f"Update {ppo.updates}, held-out tasks: {now}")
                if now["geometric_mean"] < best:
                    best = now["geometric_mean"]
                    ppo.save(best_path)
            spent += time.monotonic() - began
            if ppo.updates % 5 == 0:
                ppo.save(path, spent=spent, best=best)
            bar.update(line, completed=spent, status=f"update {ppo.updates}, ratio {ratio:+.3f}")
    updates = ppo.updates
    ppo.save(path, spent=spent, best=best)
    ppo.load(best_path)
    actor.load_state_dict(ppo.average.state_dict())
    measured["ppo"] = summary(evaluate_actor(actor, tasks[settings.tasks :]))
    measured["ppo"] |= {"updates": updates, "selected_update": ppo.updates}
    measured["ppo"]["hours"] = round(spent / 3600, 3)


def _card(settings: GeneralistSettings, measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    recipe = asdict(settings)
    recipe.pop("output")
    return {
        "preset": "scale-free",
        "made_by": "lrenv train generalist",
        "settings": recipe,
        "training_families": "MLPs: down-sampled or projected MNIST-5k, random teachers; "
        "lrenv.trainees.families.training_task",
        "held_out_ratio_to_tuned_expert": dict(measured),
    }
