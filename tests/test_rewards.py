"""Rewards against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lrenv.errors import InputError
from lrenv.rewards import (
    ImprovementReward,
    OutcomeReward,
    RewardContext,
    SmoothnessReward,
    build_reward,
)
from lrenv.window import WINDOW, StepWindow


def context(
    losses: list[float], vals: list[float], best: float = 2.0, done: bool = False
) -> RewardContext:
    window = StepWindow()
    window.loss, window.val_loss = torch.tensor([losses]), torch.tensor([vals])
    return RewardContext(
        window, val_loss=vals[-1], best_val_loss=best, epoch=3.0, max_epoch=10.0, done=done
    )


def test_smoothness_is_the_sources_sum_over_the_padded_window() -> None:
    losses, vals = [2.0, 1.0, 1.5], [3.0, 3.0, 2.0]
    # 510 times the first value, then 1.0 and 1.5; the only rise is 0.5
    train = 510 * 2.0 + 1.0 + 1.5
    val = 511 * 3.0 + 2.0
    by_code = SmoothnessReward()(context(losses, vals))
    assert by_code == pytest.approx(-(2 * 0.5 + 3 * train) / WINDOW, rel=1e-6)
    with_val = SmoothnessReward(val=3.6)(context(losses, vals))
    assert with_val == pytest.approx(-(2 * 0.5 + 3 * train + 3.6 * val) / WINDOW, rel=1e-6)


def test_improvement_follows_subramanian() -> None:
    reward = ImprovementReward(gamma=2.0, lam=0.5)
    assert reward(context([1.0], [1.5], best=1.75)) == pytest.approx(2 * 0.25 + 0.5 * 7)


def test_outcome_is_paid_at_the_end() -> None:
    reward = OutcomeReward(reference=0.5)
    assert reward(context([1.0], [0.25])) == 0.0
    assert reward(context([1.0], [0.25], done=True)) == pytest.approx(math.log(2))


def test_unknown_reward() -> None:
    with pytest.raises(InputError, match="Expected a reward among smoothness, improvement"):
        build_reward("accuracy")
