"""``lrenv finetune``: train a trainee under a pretrained policy, and keep everything of it."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, replace
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
from lrenv.trainees.generation import general_loss, generate, rouge
from lrenv.trainees.instructions import load_instructions
from lrenv.trainees.language_model import load_tokenizer
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task, load_data
from lrenv.training.progress import console, progress_bar
from lrenv.training.run_report import write_run_report
from lrenv.training.runfolder import (
    check_settings,
    read_state,
    write_json,
    write_state,
    write_tensors,
)
from lrenv.training.settings import FinetuneSettings, LanguageModelSettings

VALIDATIONS = 20
"""Validations in a run."""

PROGRESS = "progress.jsonl"
"""What ``lrenv monitor`` follows: a line a start of the job, and a line an optimizer step."""


class ProgressLog:
    """Appends lines to the log that ``lrenv monitor`` follows, each with the time it is written at.

    A start says how many steps are behind the job: what the log holds of later ones, from before a
    kill, no longer counts.

    Args:
        path: The log.
        start: Optimizer steps behind the job.
        total_steps: Length of the run in optimizer steps.
    """

    def __init__(self, path: Path, start: int, total_steps: int) -> None:
        cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", buffering=1)
        self._file.write("\n" if cut else "")
        self.write(start=start, total_steps=total_steps)

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, **values: Any) -> None:
        """Append a line of values; floats that are not finite become null."""
        row = {"time": round(time.time(), 3), **values}
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[name] = None
        self._file.write(json.dumps(row) + "\n")


def finetune(settings: FinetuneSettings) -> Path:
    """Train the trainee; a run that was stopped goes on from its last checkpoint, exactly.

    Writes the model (an adapter in peft's format for a language model), ``decisions.jsonl``,
    ``metrics.json``, ``report.html``, TensorBoard's files, and as it goes ``progress.jsonl``.

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
    task = finetune_task(settings)
    folder = make_folder(settings.output)
    check_settings(folder, settings, free={"output", "checkpoint_every"})
    data = load_data(task.data)
    console.print(f"Data: {data.name}, {data.note}")
    trainee = build_trainee(task, _device(settings.device))
    scheduler = LearnedLR(
        trainee.optimizer,
        settings.total_steps,
        policy,
        steps_per_epoch=trainee.steps_per_epoch,
        rollback=trainee.model if settings.rollback else None,
        layerwise=settings.layerwise,
    )
    checkpoint, losses, vals = folder / "checkpoint.pt", [], {}
    if checkpoint.exists():
        state = read_state(checkpoint)
        trainee.load_state_dict(state["trainee"])
        scheduler.load_state_dict(state["scheduler"])
        losses, vals = list(state["losses"].split(1)), state["vals"]
        console.print(f"Resumed at step {len(losses)} of {settings.total_steps}")
    with (
        SummaryWriter(str(folder / "tensorboard"), purge_step=len(losses)) as writer,
        ProgressLog(folder / PROGRESS, len(losses), settings.total_steps) as progress,
    ):
        _train(trainee, scheduler, (losses, vals), settings, (writer, progress), checkpoint)
        metrics = _finish(folder, trainee, scheduler, (losses, vals), settings, writer)
        progress.write(finished=True)
    return metrics


def _device(name: str | None) -> torch.device:
    """The device of that name, by default the GPU if there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"Expected a device that torch has here, such as cpu; got {name!r}: {reason}"
        ) from None
    return torch.device(name)


def finetune_task(settings: FinetuneSettings) -> Task:
    """The task that the settings describe."""
    optimizer = OptimizerSpec(settings.optimizer)
    task = build_task(settings.trainee, settings.total_steps, optimizer, settings.seed)
    llm, spec = settings.llm, task.spec
    if not isinstance(spec, LoRASpec):
        if llm != LanguageModelSettings():
            raise InputError(
                "Expected the settings of a language model with the trainee lora-llm alone, got "
                f"them with {settings.trainee}; add --trainee lora-llm."
            )
        return task
    if llm.max_length < 2 or llm.answers < 0:
        raise InputError(
            f"Expected max_length of at least 2 and answers of at least 0, got {llm.max_length} "
            f"and {llm.answers}."
        )
    spec = replace(
        spec,
        model=llm.model,
        rank=llm.rank,
        alpha=llm.alpha,
        dropout=llm.dropout,
        targets=llm.targets,
        quantized=llm.quantized,
        batch_size=llm.batch_size,
    )
    data = DataSpec(
        llm.data, context=llm.max_length, tokenizer=llm.model, all_tokens=llm.all_tokens
    )
    return Task(data, spec, settings.seed)


def _train(
    trainee: SingleTrainee,
    scheduler: LearnedLR,
    history: tuple[list[Tensor], dict[int, float]],
    settings: FinetuneSettings,
    logs: tuple[SummaryWriter, ProgressLog],
    checkpoint: Path,
) -> None:
    (losses, vals), (writer, progress) = history, logs
    every = max(1, settings.total_steps // VALIDATIONS)
    with progress_bar() as bar:
        line = bar.add_task("Training", total=settings.total_steps, status="")
        for step in range(len(losses), settings.total_steps):
            loss = trainee.backward()
            trainee.optimizer.step()
            losses.append(loss.cpu())
            val = None
            if (step + 1) % every == 0:
                val = trainee.evaluate("val", trainee.spec.val_examples)[0]
                vals[step] = float(val)
                writer.add_scalar("losses/val", vals[step], step)
            decided = len(scheduler.decisions)
            scheduler.step(loss, val_loss=val)
            lr = float(scheduler.get_last_lr()[0])
            values = {"step": step + 1, "loss": float(loss), "lr": lr, "val_loss": vals.get(step)}
            progress.write(**values, decision=_brief(scheduler.decisions[decided:]))
            writer.add_scalar("losses/train", float(loss), step)
            writer.add_scalar("charts/lr", lr, step)
            bar.update(line, completed=step + 1, status=f"loss {float(loss):.4f}, LR {lr:.2e}")
            if (step + 1) % settings.checkpoint_every == 0:
                state = {"trainee": trainee.state_dict(), "scheduler": scheduler.state_dict()}
                write_state(checkpoint, {**state, "losses": torch.cat(losses), "vals": vals})


def _brief(decisions: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last of some decisions, less its features; None if there is none."""
    return {k: v for k, v in decisions[-1].items() if k != "features"} if decisions else None


def _finish(
    folder: Path,
    trainee: SingleTrainee,
    scheduler: LearnedLR,
    history: tuple[list[Tensor], dict[int, float]],
    settings: FinetuneSettings,
    writer: SummaryWriter,
) -> Path:
    losses, vals = history
    (val, _), (test, accuracy) = (trainee.evaluate(split) for split in ("val", "test"))
    metrics: dict[str, Any] = {
        "data": trainee.dataset.name,
        "policy": scheduler.policy.name,
        "mean_train_loss": float(torch.cat(losses).mean()),
        "val_loss": float(val),
        "test_loss": float(test),
        "test_accuracy": float(accuracy),
    }
    if isinstance(trainee.spec, LoRASpec):
        _save_adapter(trainee, folder / "adapter")
        metrics |= language_metrics(trainee, settings.llm.data, settings.llm.answers)
    else:
        write_tensors(folder / "model.safetensors", trainee.model.state_dict())
    for name, value in metrics.items():
        if isinstance(value, float):
            writer.add_scalar(f"final/{name}", value, settings.total_steps)
    log = "".join(json.dumps(entry) + "\n" for entry in scheduler.decisions)
    write_atomic(folder / "decisions.jsonl", lambda path: path.write_text(log))
    write_json(folder / "metrics.json", metrics)
    curves = {"train": dict(enumerate(torch.cat(losses).tolist())), "validation": vals}
    title = f"{settings.trainee} under {scheduler.policy.name}"
    report = write_run_report(
        folder / "report.html", title, curves, scheduler.decisions, (metrics, _plain(settings))
    )
    table = Table("metric", "value", title=f"{folder}")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"Report: {report.resolve()}", soft_wrap=True)
    return folder / "metrics.json"


def language_metrics(trainee: SingleTrainee, data: str, answers: int) -> dict[str, float]:
    """ROUGE on test prompts, and the loss on general text before and after fine-tuning.

    Args:
        trainee: A fine-tuned language model.
        data: The instructions it learned.
        answers: Test prompts that are answered; 0 for none.
    """
    assert isinstance(trainee.spec, LoRASpec)
    spec, model = trainee.spec, trainee.model
    tokenizer = load_tokenizer(spec.model)
    after = general_loss(spec, model, tokenizer)
    with model.disable_adapter():  # type: ignore[operator]
        before = general_loss(spec, model, tokenizer)
    metrics = {"general_loss_before": before, "general_loss_after": after}
    pairs = load_instructions(data).test[:answers]
    if pairs:
        found = generate(model, tokenizer, [pair.prompt for pair in pairs])
        metrics |= rouge(found, [pair.response for pair in pairs])
    return metrics


def _save_adapter(trainee: SingleTrainee, folder: Path) -> None:
    """Write the adapter in peft's format, whole or not at all."""

    def write(temporary: Path) -> None:
        trainee.model.save_pretrained(temporary)  # type: ignore[operator]
        shutil.rmtree(folder, ignore_errors=True)

    write_atomic(folder, write, mode=0o755)


def _plain(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings of a run in one flat table."""
    flat: dict[str, Any] = asdict(settings)
    flat |= flat.pop("llm")
    return flat
