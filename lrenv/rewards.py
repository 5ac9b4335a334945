"""Rewards of a decision, from training and validation losses alone.

A new reward is one class with a ``__call__`` and one line in ``REWARDS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lrenv.errors import InputError
from lrenv.window import WINDOW, StepWindow, pad_left


@dataclass(frozen=True)
class RewardContext:
    """What a reward may look at.

    Attributes:
        window: The last 512 steps of one run.
        val_loss: Validation loss at the end of the interval.
        best_val_loss: The lowest so far, before this interval.
        epoch: Passes over the training data so far.
        max_epoch: Passes in the whole run.
        done: Whether the run is over.
    """

    window: StepWindow
    val_loss: float
    best_val_loss: float
    epoch: float
    max_epoch: float
    done: bool


Reward = Callable[[RewardContext], float]


@dataclass(frozen=True)
class SmoothnessReward:
    """The source's reward: low, falling losses over the window.

    r = −(1/512) Σ (λ₁·max(0, train_i − train_{i−1}) + λ₂·train_i + λ₃·val_i) over the last 512
    steps. Source: the project proposal "Learned Learning Rate Scheduler"; its code uses λ = (2, 3,
    0), and (2, 3, 3.6) turns validation on.

    Attributes:
        rise: λ₁.
        train: λ₂.
        val: λ₃.
    """

    rise: float = 2.0
    train: float = 3.0
    val: float = 0.0

    def __call__(self, context: RewardContext) -> float:
        """Return the reward of the interval."""
        train = pad_left(context.window.loss)[0]
        rises = (train[1:] - train[:-1]).clamp_min(0.0).sum()
        total = self.rise * rises + self.train * train.sum()
        if self.val:
            val = torch.where(
                context.window.val_loss.isnan(), context.window.loss, context.window.val_loss
            )
            total = total + self.val * pad_left(val)[0].sum()
        return -float(total) / WINDOW


@dataclass(frozen=True)
class ImprovementReward:
    """Subramanian et al. 2023: r = γ·(best_loss − val_loss) + λ·(epoch_max − epoch).

    Attributes:
        gamma: Weight of the improvement over the best validation loss so far.
        lam: Weight of the epochs that are left.
    """

    gamma: float = 1.0
    lam: float = 1e-3

    def __call__(self, context: RewardContext) -> float:
        """Return the reward of the interval."""
        improvement = context.best_val_loss - context.val_loss
        return self.gamma * improvement + self.lam * (context.max_epoch - context.epoch)


@dataclass(frozen=True)
class OutcomeReward:
    """Minus the log ratio of the final validation loss to the tuned expert's; 0 before the end.

    Attributes:
        reference: Final validation loss of the tuned expert.
    """

    reference: float

    def __call__(self, context: RewardContext) -> float:
        """Return the reward of the interval."""
        if not context.done:
            return 0.0
        return -math.log(max(context.val_loss, 1e-12) / self.reference)


REWARDS: dict[str, Callable[[float | None], Reward]] = {
    "smoothness": lambda reference: SmoothnessReward(),
    "improvement": lambda reference: ImprovementReward(),
    "outcome": lambda reference: OutcomeReward(_checked(reference)),
}


def build_reward(name: str, reference: float | None = None) -> Reward:
    """Build a reward by name; the outcome needs the tuned expert's loss as ``reference``."""
    if name not in REWARDS:
        raise InputError(f"Expected a reward among {', '.join(REWARDS)}; got {name!r}.")
    return REWARDS[name](reference)


def _checked(reference: float | None) -> float:
    if reference is None or not reference > 0:
        raise InputError(
            f"Expected the tuned expert's validation loss as reference, got {reference!r}; run the "
            "expert search on the trainee first."
        )
    return reference
