"""What a sweep hands to a training function, and the training function of a trainee."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
import torch
from torch import Tensor
from torch.optim import Optimizer

from lrenv.decisions import equal_steps
from lrenv.errors import InputError
from lrenv.policies.lrbench import parse_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import Task
from lrenv.training.methods import learned_lr
from lrenv.training.runfolder import read_state, write_state

REPORTS = 20
"""Validations of a trainee in a trial."""

LEARNED = "learned:"
"""How the policy of a trial begins that a learned policy schedules; its name follows."""

_CHECKPOINT_SECONDS = 5.0
_STATE = "state.pt"


class Trial:
    """One run to train, of a sweep: asks for LRs, reports losses, goes on from a checkpoint.

    Attributes:
        policy: The policy in LRBench's notation, or ``"learned:name"``.
        total_steps: Length of the run in optimizer steps.
        seed: Seed of the run.
        state: What the run last gave to :meth:`report` as its state before it was killed; None for
            a new run.
        ended: Whether the last report ended the run: its last step, the target, or a loss that is
            not finite.
    """

    def __init__(
        self, policy: str, total_steps: int, seed: int = 0, target: float | None = None
    ) -> None:
        self.policy, self.total_steps, self.seed = policy, total_steps, seed
        self._target = -math.inf if target is None else target
        self._schedule = None if policy.startswith(LEARNED) else parse_policy(policy)
        self.state: dict[str, Any] | None = None
        self.ended = False
        self._before = 0.0
        checkpoint = ray.tune.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                kept = read_state(Path(folder) / _STATE)
            self.state, self._before = kept["state"], kept["seconds"]
        self._began = self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Duration of the run so far, with what was before its checkpoint."""
        return self._before + time.perf_counter() - self._began

    def lr(self, step: int) -> float:
        """The LR of optimizer step ``step``, from 0; not for learned policies.

        Raises:
            InputError: The policy is a learned one.
        """
        if self._schedule is None:
            raise InputError(
                f"Expected a policy of LRBench, got {self.policy!r}; schedule it by "
                "trial.learned(optimizer), or start the sweep with --learned None."
            )
        return self._schedule(step)

    def learned(self, optimizer: Optimizer, **settings: Any) -> LearnedLR | None:
        """The scheduler of an optimizer under the learned policy; None under one of LRBench's.

        Args:
            optimizer: The optimizer.
            **settings: Of :class:`lrenv.LearnedLR`, such as ``steps_per_epoch``.
        """
        if self._schedule is not None:
            return None
        policy = self.policy.removeprefix(LEARNED)
        return LearnedLR(optimizer, self.total_steps, policy, **settings)

    def report(
        self,
        step: int,
        val_loss: Tensor | float,
        train_loss: Tensor | float | None = None,
        lr: Tensor | float | None = None,
        metrics: Mapping[str, Tensor | float] | None = None,
        state: Callable[[], dict[str, Any]] | None = None,
    ) -> bool:
        """Report how a run does; a sweep that cuts bad runs short may end it here.

        Args:
            step: Optimizer steps taken.
            val_loss: Validation loss, the lower the better.
            train_loss: Training loss since the last report.
            lr: LR of the last step.
            metrics: Further figures.
            state: Gives all that is needed to go on, as tensors and plain values; called every few
                seconds.

        Returns:
            Whether to go on: the target is not reached, and the loss is finite.
        """
        val_loss = float(val_loss)
        good = math.isfinite(val_loss)
        reached = good and val_loss <= self._target
        self.ended = not good or reached or step >= self.total_steps
        now = time.perf_counter()
        row = {
            "step": step,
            "val_loss": val_loss if good else math.inf,
            "train_loss": None if train_loss is None else float(train_loss),
            "lr": None if lr is None else float(lr),
            "seconds": self.seconds,
            "reached": reached,
            "status": "done" if good else "diverged",
            **{f"metric/{name}": float(value) for name, value in (metrics or {}).items()},
        }
        if state is None or now - self._saved < _CHECKPOINT_SECONDS:
            ray.tune.report(row)
        else:
            self._saved = now
            with tempfile.TemporaryDirectory() as folder:
                write_state(Path(folder) / _STATE, {"state": state(), "seconds": row["seconds"]})
                ray.tune.report(row, checkpoint=ray.tune.Checkpoint(folder))
        return good and not reached


@dataclass(frozen=True)
class TrainTrainee:
    """Trains a trainee; the training function of a sweep over one of ours.

    Attributes:
        task: The task; a trial's seed replaces its own.
    """

    task: Task

    def __call__(self, trial: Trial) -> None:
        """Train a run, with reports at equal distances."""
        torch.set_num_threads(1)
        trainee = build_trainee(replace(self.task, seed=trial.seed))
        learned = None
        if trial.policy.startswith(LEARNED):
            learned = learned_lr(trainee, trial.policy.removeprefix(LEARNED))
        done = 0
        if trial.state:
            trainee.load_state_dict(trial.state["trainee"])
            if learned:
                learned.load_state_dict(trial.state["scheduler"])
            done = int(trial.state["step"])
        self._train(trial, trainee, learned, done)

    def _train(
        self, trial: Trial, trainee: SingleTrainee, learned: LearnedLR | None, done: int
    ) -> None:
        reports = equal_steps(trial.total_steps, REPORTS)
        losses: list[torch.Tensor] = []
        for step in range(done, trial.total_steps):
            loss = trainee.backward()
            losses.append(loss)
            if learned:
                lr = float(trainee.optimizer.param_groups[0]["lr"])
                trainee.optimizer.step()
                learned.step(loss)
            else:
                lr = trial.lr(step)
                trainee.update(torch.tensor([lr]))
            if step + 1 not in reports:
                continue
            mean = float(torch.cat(losses).mean())
            losses = []

            def state(step: int = step) -> dict[str, Any]:
                own = {"trainee": trainee.state_dict(), "step": step + 1}
                return own | ({"scheduler": learned.state_dict()} if learned else {})

            val_loss = float(trainee.evaluate("val")[0])
            if not trial.report(
                step + 1, val_loss, mean, lr, self._scores(trainee, step + 1), state
            ):
                return

    def _scores(self, trainee: SingleTrainee, step: int) -> dict[str, float]:
        if step < trainee.total_steps:
            return {}
        test_loss, accuracy = trainee.evaluate("test")
        return {"test_loss": float(test_loss), "top1": float(accuracy)}
