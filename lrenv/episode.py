"""An episode: the training of runs in lockstep, one decision at a time, with rewards.

The single environment is an episode of one run; the vector environments hold several of many.

Shape legend: r runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lrenv.controller import Controller, Preset, run_interval
from lrenv.rewards import Reward, RewardContext
from lrenv.trainees.base import Trainee

T = TypeVar("T", bound=Trainee)

DIVERGED_REWARD = -10.0
"""Reward of the decision under which a run diverges."""

DIVERGED_FACTOR = 20.0
"""A run whose loss is that many times its first has diverged."""


@dataclass(frozen=True)
class Outcome:
    """What came of one decision.

    Attributes:
        rewards: Reward of each run, ``(r,)``.
        terminated: Runs that are over, ``(r,)``.
        diverged: Runs that are over because they diverged, ``(r,)``.
        lr: The LR that was set, ``(r,)``.
        train_loss: Training loss of the last step, ``(r,)``.
        val_loss: Validation loss, ``(r,)``.
    """

    rewards: Tensor
    terminated: Tensor
    diverged: Tensor
    lr: Tensor
    train_loss: Tensor
    val_loss: Tensor


class Episode(Generic[T]):
    """Runs of a trainee from the first step to the last.

    Args:
        trainee: One run or several in lockstep; fresh.
        preset: Preset of observation and action.
        rewards: The reward of each run.
    """

    def __init__(self, trainee: T, preset: Preset, rewards: Sequence[Reward]) -> None:
        self.trainee, self._rewards = trainee, rewards
        self.controller = Controller(
            trainee.total_steps,
            trainee.traits,
            trainee.n_runs,
            preset=preset,
            steps_per_epoch=trainee.steps_per_epoch,
        )
        self._best_val = torch.full((trainee.n_runs,), torch.inf)

    def start(self) -> None:
        """Train up to the first decision."""
        while not self.controller.deciding:
            self._best_val = torch.fmin(self._best_val, self._run_interval())
        self._first_loss = self.controller.observer.window.loss[:, 0]

    def step(self, actions: Tensor) -> Outcome:
        """Decide by ``actions``, ``(r,)``, and train for an interval."""
        decision = self.controller.act(actions)
        val = self._run_interval()
        last = self.controller.observer.window.loss[:, -1]
        diverged = self._unfit | ~val.isfinite() | (last > DIVERGED_FACTOR * self._first_loss)
        rewards = [
            DIVERGED_REWARD if over else reward(self._context(row, val))
            for row, (reward, over) in enumerate(zip(self._rewards, diverged.tolist(), strict=True))
        ]
        self._best_val = torch.fmin(self._best_val, val)
        return Outcome(
            rewards=torch.tensor(rewards),
            terminated=diverged | self.controller.done,
            diverged=diverged,
            lr=decision.lr,
            train_loss=last,
            val_loss=val,
        )

    def observation(self) -> Tensor:
        """Return the observations, flat, ``(r, n)``."""
        return self.controller.observer.padded().flatten(1)

    def _run_interval(self) -> Tensor:
        before = self.controller.step
        run_interval(self.trainee, self.controller)
        n_examples = None if self.controller.done else self.trainee.spec.val_examples
        val = self.trainee.evaluate("val", n_examples)[0]
        self.controller.close(val)
        losses = self.controller.observer.window.loss[:, before - self.controller.step :]
        self._unfit = ~losses.isfinite().all(1)
        return val

    def _context(self, row: int, val_loss: Tensor) -> RewardContext:
        return RewardContext(
            window=self.controller.observer.window.row(row),
            val_loss=float(val_loss[row]),
            best_val_loss=float(self._best_val[row]),
            epoch=self.controller.step / self.trainee.steps_per_epoch,
            max_epoch=self.trainee.total_steps / self.trainee.steps_per_epoch,
            done=self.controller.done,
        )
