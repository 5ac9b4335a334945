"""``lrenv finetune``: train a trainee under a policy or another method, and keep all of it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lrenv.decisions import equal_steps
from lrenv.errors import InputError
from lrenv.files import make_folder, write_atomic
from lrenv.scheduler import LearnedLR
from lrenv.trainees.generation import general_loss, generate, rouge
from lrenv.trainees.instructions import load_instructions
from lrenv.trainees.language_model import load_tokenizer
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task, load_data
from lrenv.training.methods import (
    OTHER_SETTINGS,
    POLICY_SETTINGS,
    Method,
    policy_of,
    start_lr,
    start_method,
)
from lrenv.training.progress import PROGRESS, ProgressLog, console, progress_bar
from lrenv.training.report_page import number
from lrenv.training.run_report import write_run_report
from lrenv.training.runfolder import (
    check_settings,
    read_state,
    write_json,
    write_state,
    write_tensors,
)
from lrenv.training.settings import FinetuneSettings, LanguageModelSettings, check_seed

VALIDATIONS = 20
"""Validations in a run."""

CHECKPOINTS = 10
"""Checkpoints in a run, unless it is said how many."""


@dataclass
class _Run:
    """A run as far as it is: losses of its steps, LRs by parameter group, validations by step."""

    label: str
    trainee: SingleTrainee
    method: Method
    losses: list[Tensor] = field(default_factory=list)
    lrs: dict[str, list[float]] = field(default_factory=dict)
    vals: dict[int, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return {
            "trainee": self.trainee.state_dict(),
            "method": self.method.state_dict(),
            "losses": torch.cat(self.losses),
            "lrs": self.lrs,
            "vals": self.vals,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainee.load_state_dict(state["trainee"])
        self.method.load_state_dict(state["method"])
        self.losses = list(state["losses"].split(1))
        self.lrs, self.vals = state["lrs"], state["vals"]


def finetune(settings: FinetuneSettings) -> Path:
    """Train the trainee; a run that was stopped goes on from its last checkpoint, exactly.

    Writes the model (an adapter in peft's format for a language model), ``metrics.json``,
    ``report.html``, a policy's ``decisions.jsonl``, TensorBoard's files, and as it goes
    ``progress.jsonl``.

    Returns:
        The path of the metrics.

    Raises:
        InputError: A setting cannot be used, or the folder belongs to another run.
    """
    if settings.checkpoint_every is not None and settings.checkpoint_every < 1:
        raise InputError(
            f"Expected checkpoint_every of at least 1, got {settings.checkpoint_every}; raise it."
        )
    check_seed(settings.seed)
    policy = policy_of(settings)
    task = finetune_task(settings)
    folder = make_folder(settings.output)
    data = load_data(task.data)
    console.print(f"Data: {data.name}, {data.note}", markup=False)
    trainee = build_trainee(task, _device(settings.device))
    label = f"{policy.name} policy" if policy else settings.method
    run = _Run(label, trainee, start_method(settings, policy, trainee))
    # Not before: a start that failed must not bind the folder.
    check_settings(folder, settings, free={"output", "checkpoint_every"}, data=data.name)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.load_state_dict(read_state(checkpoint))
        done, total = len(run.losses), settings.total_steps
        resumed = f"Resumed at step {done} of {total}"
        console.print(resumed if done < total else "Trained already; writing the results again")
    start = len(run.losses)
    with (
        SummaryWriter(str(folder / "tensorboard"), purge_step=start) as writer,
        ProgressLog(folder / PROGRESS, start, settings.total_steps) as progress,
    ):
        _train(run, settings, (writer, progress), checkpoint)
        metrics = _finish(folder, run, settings, writer)
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
    optimizer = OptimizerSpec.usual(settings.optimizer)
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
    run: _Run,
    settings: FinetuneSettings,
    logs: tuple[SummaryWriter, ProgressLog],
    checkpoint: Path,
) -> None:
    trainee, method, (writer, progress) = run.trainee, run.method, logs
    watched = equal_steps(settings.total_steps, VALIDATIONS)
    save_every = settings.checkpoint_every or max(1, settings.total_steps // CHECKPOINTS)
    with progress_bar() as bar:
        line = bar.add_task("Training", total=settings.total_steps, status="")
        for step in range(len(run.losses), settings.total_steps):
            loss = trainee.backward()
            trainee.optimizer.step()
            run.losses.append(loss.cpu())
            val = None
            if step + 1 in watched:
                val = trainee.evaluate("val", trainee.spec.val_examples)[0]
                run.vals[step] = float(val)
                writer.add_scalar("losses/val", run.vals[step], step)
            decided = len(method.decisions)
            method.step(loss, val_loss=val)
            lrs = _lrs(trainee)
            for name, lr in lrs.items():
                run.lrs.setdefault(name, []).append(lr)
                writer.add_scalar(f"charts/{name}", lr, step)
            lr = next(iter(lrs.values()))
            values = {
                "step": step + 1,
                "loss": float(loss),
                "lr": lr,
                "val_loss": run.vals.get(step),
            }
            progress.write(**values, decision=_brief(method.decisions[decided:]))
            writer.add_scalar("losses/train", float(loss), step)
            bar.update(line, completed=step + 1, status=f"loss {float(loss):.4f}, LR {lr:.2e}")
            if (step + 1) % save_every == 0:
                write_state(checkpoint, run.state_dict())


def _lrs(trainee: SingleTrainee) -> dict[str, float]:
    """LRs of the parameter groups by their names; those without one share theirs."""
    groups = trainee.optimizer.param_groups
    return {f"lr/{g['name']}" if "name" in g else "lr": float(g["lr"]) for g in groups}


def _brief(decisions: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last of some decisions, less its features; None if there is none."""
    return {k: v for k, v in decisions[-1].items() if k != "features"} if decisions else None


def _finish(folder: Path, run: _Run, settings: FinetuneSettings, writer: SummaryWriter) -> Path:
    trainee, decisions = run.trainee, run.method.decisions
    losses = torch.cat(run.losses)
    (val, _), (test, accuracy) = (trainee.evaluate(split) for split in ("val", "test"))
    metrics: dict[str, Any] = {
        "data": trainee.dataset.name,
        "method": run.label,
        "mean_train_loss": float(losses.mean()),
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
    if isinstance(run.method, LearnedLR):
        run.method.save_decisions(folder / "decisions.jsonl")
    kept = {k: number(v) if isinstance(v, float) else v for k, v in metrics.items()}
    write_json(folder / "metrics.json", kept)
    vals = {step + 1: val for step, val in run.vals.items()}
    curves = {"train": dict(enumerate(losses.tolist(), 1)), "validation": vals}
    report = write_run_report(
        folder / "report.html",
        f"{settings.trainee} by {run.label}",
        (curves, run.lrs, decisions),
        (metrics, _plain(settings, trainee)),
    )
    table = Table("metric", "value", title=escape(str(folder)))
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else escape(str(value)))
    console.print(table)
    console.print(f"Report: {report.resolve()}", markup=False, soft_wrap=True)
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


def _plain(settings: FinetuneSettings, trainee: SingleTrainee) -> dict[str, Any]:
    """The settings of a run that count, in one flat table."""
    flat: dict[str, Any] = asdict(settings) | {"lr": start_lr(settings, trainee)}
    llm = flat.pop("llm")
    if settings.trainee == "lora-llm":
        flat |= llm
    unused = OTHER_SETTINGS if settings.method == "learned" else POLICY_SETTINGS
    return {name: value for name, value in flat.items() if name not in unused}
