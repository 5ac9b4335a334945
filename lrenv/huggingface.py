"""``LearnedLR`` in the Hugging Face Trainer, and those built on it, such as trl's SFTTrainer.

```python
trainer = Trainer(model=model, args=args, train_dataset=data)
use_learned_lr(trainer)
trainer.train()
```
"""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import has_length

from lrenv.decisions import check_steps_per_epoch
from lrenv.errors import InputError
from lrenv.policies.frozen import DEFAULT_POLICY, FrozenPolicy, load_policy
from lrenv.scheduler import LearnedLR


def use_learned_lr(
    trainer: Trainer, policy: str | Path | FrozenPolicy = DEFAULT_POLICY, **kwargs: Any
) -> None:
    """Let a frozen policy set a trainer's learning rate; call it ahead of ``trainer.train()``.

    The trainer makes its scheduler anew for every training, as it always does, but a
    :class:`LearnedLR` of the length of that training; one that was given to it in ``optimizers=``
    stays. The scheduler is told the loss of every optimizer step, over all accumulated batches, the
    loss of every evaluation (of several data sets at once, none), and the length of an epoch, where
    the training data have one or ``steps_per_epoch=`` says it. Checkpoints hold its state, and
    ``learning_rate`` is logged as ever; ``learning_rate``, ``lr_scheduler_type`` and
    ``warmup_steps`` of the arguments count for nothing.

    Args:
        trainer: The trainer.
        policy: Name of a shipped policy, path of a policy file, or a loaded policy.
        kwargs: Further arguments of :class:`LearnedLR`, such as ``rollback``.

    Raises:
        InputError: The trainer has another scheduler already, or this was called for it before.
        TypeError: :class:`LearnedLR` takes no such argument.
        PolicyFileError: The policy cannot be loaded.
    """
    host: Any = trainer  # whose methods are replaced, which types forbid
    given = host.lr_scheduler
    if given is not None and not isinstance(given, LearnedLR):
        raise InputError(
            f"Expected no scheduler in the trainer, or a LearnedLR, got {type(given).__name__}; "
            "leave it out of optimizers=."
        )
    if any(isinstance(callback, _Reporter) for callback in host.callback_handler.callbacks):
        raise InputError(
            "Expected a trainer without a learned LR, got one with it; call this once."
        )
    loaded = policy if isinstance(policy, FrozenPolicy) else load_policy(policy)
    signature(LearnedLR).bind_partial(host.optimizer, None, loaded, **kwargs)
    check_steps_per_epoch(kwargs.get("steps_per_epoch"))
    make_loader, per_epoch = host.get_train_dataloader, None

    def get_train_dataloader() -> DataLoader[Any]:
        nonlocal per_epoch
        loader: DataLoader[Any] = make_loader()
        per_epoch = _steps_per_epoch(loader, host.args.gradient_accumulation_steps)
        return loader

    def create_scheduler(
        num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LearnedLR:
        if host.lr_scheduler is None:
            optimizer = host.optimizer if optimizer is None else optimizer
            host.lr_scheduler = LearnedLR(
                optimizer, num_training_steps, loaded, **{"steps_per_epoch": per_epoch, **kwargs}
            )
            host._created_lr_scheduler = True
        scheduler: LearnedLR = host.lr_scheduler
        return scheduler

    host.get_train_dataloader = get_train_dataloader
    host.create_scheduler = create_scheduler
    host.add_callback(_Reporter(host))


def _steps_per_epoch(loader: DataLoader[Any], accumulated: int) -> float | None:
    """Optimizer steps in a pass over a loader that accumulates batches, where it has a length."""
    return max(1, math.ceil(len(loader) / accumulated)) if has_length(loader) else None


class _Reporter(TrainerCallback):
    """Tells the scheduler the losses of a trainer.

    Callbacks are not told the loss of a step, so it is taken from what ``training_step`` returns:
    the shares of the accumulated batches, whose sum is the loss of the optimizer step.
    """

    def __init__(self, trainer: Any) -> None:
        self._shares: list[torch.Tensor] = []
        take_step = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = take_step(*args, **kwargs)
            self._shares.append(loss.detach())
            return loss

        trainer.training_step = training_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what a training that was broken off has left."""
        self._shares = []

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the loss of the step just taken; the trainer steps the scheduler next."""
        kwargs["lr_scheduler"].report(torch.stack(self._shares).sum())
        self._shares = []

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the loss of an evaluation."""
        scheduler, metrics = kwargs.get("lr_scheduler"), kwargs["metrics"]
        if scheduler is not None and "eval_loss" in metrics:
            scheduler.report(val_loss=metrics["eval_loss"])
