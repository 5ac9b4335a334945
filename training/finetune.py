"""``lrenv finetune``: train a trainee under a pretrained policy, and keep everything of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lrenv.errors import InputError
from lrenv.files import make_folder, write_atomic
from lrenv.policies.frozen import load_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import load_data
from lrenv.training.progress import console, progress_bar
from lrenv.training.runfolder import (
    check_settings,
    read_state,
    write_json,
    write_state,
    write_tensors,
)
from lrenv.training.settings import FinetuneSettings

VALIDATIONS = 20
"""Validations in a run."""


def finetune(settings: FinetuneSettings) -> Path:
    """Train the trainee; a run that was stopped goes on from its last checkpoint, exactly.

    Writes ``model.safetensors``, ``decisions.jsonl``, ``metrics.json`` and TensorBoard's files.

    Returns:
        The path of the metrics.

    Raises:
        InputError: A setting cannot be used, or the folder belongs to another run.
    """
    if settings.checkpoint_every < 1:
        raise InputError(
            f"Expected checkpoint_every of at least 1, got {settings.checkpoint_every}; raise it."
        )
    policy = load_policy(settings.policy)
    task = build_task(
        settings.trainee, settings.total_steps, OptimizerSpec(settings.optimizer), settings.seed
    )
    folder = make_folder(settings.output)
    check_settings(folder, settings, free={"output", "checkpoint_every"})
    data = load_data(task.data)
    console.print(f"Data: {data.name}, {data.note}")
    trainee = build_trainee(task)
    scheduler = LearnedLR(trainee.optimizer, settings.total_steps, policy)
    checkpoint, losses = folder / "checkpoint.pt", []
    if checkpoint.exists():
        state = read_state(checkpoint)
        trainee.load_state_dict(state["trainee"])
        scheduler.load_state_dict(state["scheduler"])
        losses = state["losses"]
        console.print(f"Resumed at step {len(losses)} of {settings.total_steps}")
    with SummaryWriter(str(folder / "tensorboard"), purge_step=len(losses)) as writer:
        _train(trainee, scheduler, losses, settings, writer, checkpoint)
    return _finish(folder, trainee, scheduler, losses)


def _train(
    trainee: SingleTrainee,
    scheduler: LearnedLR,
    losses: list[Tensor],
    settings: FinetuneSettings,
    writer: SummaryWriter,
    checkpoint: Path,
) -> None:
    every = max(1, settings.total_steps // VALIDATIONS)
    with progress_bar() as bar:
        line = bar.add_task("Training", total=settings.total_steps, status="")
        for step in range(len(losses), settings.total_steps):
            loss = trainee.backward()
            trainee.optimizer.step()
            losses.append(loss)
            val = trainee.evaluate("val")[0] if (step + 1) % every == 0 else None
            scheduler.step(loss, val_loss=val)
            lr = float(scheduler.get_last_lr()[0])
            if step % 10 == 0:
                writer.add_scalar("losses/train", float(loss), step)
                writer.add_scalar("charts/lr", lr, step)
                bar.update(line, completed=step, status=f"loss {float(loss):.4f}, LR {lr:.2e}")
            if val is not None:
                writer.add_scalar("losses/val", float(val), step)
            if (step + 1) % settings.checkpoint_every == 0:
                state = {"trainee": trainee.state_dict(), "scheduler": scheduler.state_dict()}
                write_state(checkpoint, {**state, "losses": losses})
        bar.update(line, completed=settings.total_steps)


def _finish(
    folder: Path, trainee: SingleTrainee, scheduler: LearnedLR, losses: list[Tensor]
) -> Path:
    (train, _), (val, _), (test, accuracy) = (
        trainee.evaluate(split) for split in ("train", "val", "test")
    )
    metrics: dict[str, Any] = {
        "data": trainee.dataset.name,
        "policy": scheduler.policy.name,
        "mean_train_loss": float(torch.cat(losses).mean()),
        "train_loss": float(train),
        "val_loss": float(val),
        "test_loss": float(test),
        "test_accuracy": float(accuracy),
    }
    write_tensors(folder / "model.safetensors", trainee.model.state_dict())
    log = "".join(json.dumps(entry) + "\n" for entry in scheduler.decisions)
    write_atomic(folder / "decisions.jsonl", lambda path: path.write_text(log))
    write_json(folder / "metrics.json", metrics)
    table = Table("metric", "value", title=f"{folder}")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    return folder / "metrics.json"
