"""From actions to learning rates, and the search for the start LR."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrenv.action import (
    CLASSIC_RANGE,
    LOG_RANGE,
    MAX_CHANGE,
    PROBE_LR,
    START_RATIO,
    calibrate,
    classic_action,
    classic_lr,
    relative_lr,
)
from lrenv.decisions import CALIBRATION_STEPS

actions = st.floats(-10, 10)


@given(actions)
def test_an_action_changes_log_lr_by_at_most_the_largest_change(action):
    start = torch.tensor([1e-3, 20.0])
    lr = relative_lr(start * 3, torch.full((2,), action), start)

    change = MAX_CHANGE * min(max(action, -1.0), 1.0)
    expected = 3 * start * math.exp(change)
    torch.testing.assert_close(lr, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("action", "bound"), [(1.0, LOG_RANGE[1]), (-1.0, LOG_RANGE[0])])
def test_the_lr_stays_within_bounds_of_the_start(action, bound):
    start = torch.tensor([0.5])
    lr = start
    for _ in range(20):
        lr = relative_lr(lr, torch.tensor([action]), start)

    assert lr.item() == pytest.approx(0.5 * math.exp(bound), rel=1e-4)


def test_classic_actions_span_the_range_evenly_in_the_logarithm():
    lrs = classic_lr(torch.tensor([-1.0, -0.2, 0.2, 1.0]))

    assert lrs.tolist() == pytest.approx([1e-6, 1e-4, 1e-3, 1e-1], rel=1e-5)
    assert classic_lr(torch.tensor([-7.0, 7.0])).tolist() == pytest.approx(CLASSIC_RANGE, rel=1e-5)


@given(st.floats(math.log(CLASSIC_RANGE[0]), math.log(CLASSIC_RANGE[1])))
def test_classic_action_inverts_classic_lr(log_lr):
    action = classic_action(math.exp(log_lr))

    assert -1 <= action <= 1
    assert math.log(classic_lr(torch.tensor([action])).item()) == pytest.approx(log_lr, abs=1e-4)


@pytest.mark.parametrize(("lr", "action"), [(0.0, -1.0), (1e-9, -1.0), (5.0, 1.0)])
def test_classic_action_is_clipped(lr, action):
    assert classic_action(lr) == action


@given(st.floats(math.log10(2e-3), 12))
def test_calibration_finds_the_unit_of_a_linear_optimizer(log_gain):
    """An update of 10^log_gain · LR relative to the weights, over fifteen orders of magnitude."""
    gain = 10**log_gain
    lr, found = torch.tensor([PROBE_LR]), torch.tensor([False])
    for _ in range(CALIBRATION_STEPS):
        lr, found = calibrate(lr, gain * lr, torch.ones(1), found)

    assert found.tolist() == [True]
    assert (gain * lr).item() == pytest.approx(START_RATIO, rel=1e-4)


@pytest.mark.parametrize("gain", [3e-3, 1.0, 1e4])
def test_calibration_finds_the_unit_through_float32_weights(gain):
    theta = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    direction *= gain * theta.norm() / direction.norm()
    lr, found = torch.tensor([PROBE_LR]), torch.tensor([False])
    for _ in range(CALIBRATION_STEPS):
        moved = theta - lr * direction
        ratio = ((moved - theta).norm() / theta.norm())[None]
        lr, found = calibrate(lr, ratio, direction.norm()[None], found)

    assert (gain * lr).item() == pytest.approx(START_RATIO, rel=0.02)


def test_runs_are_calibrated_each_by_itself():
    lr, found = calibrate(
        torch.tensor([1e-7, 1e-7, 0.5]),
        torch.tensor([3e-4, 1e-9, 1e-2]),
        torch.ones(3),
        torch.tensor([False, False, True]),
    )

    assert lr.tolist() == pytest.approx([1e-7, 1e-5, 0.5], rel=1e-5)
    assert found.tolist() == [True, False, True]


@pytest.mark.parametrize("ratio", [math.nan, math.inf])
def test_an_update_that_is_not_finite_does_not_raise_the_lr(ratio):
    lr, found = calibrate(
        torch.tensor([1e-5]), torch.tensor([ratio]), torch.ones(1), torch.tensor([False])
    )

    assert lr.item() <= 1e-5
    assert found.tolist() == [False]


@pytest.mark.parametrize("grad_norm", [0.0, math.nan, math.inf])
def test_without_a_usable_gradient_the_probe_repeats(grad_norm):
    lr, found = calibrate(
        torch.tensor([1e-7, 1e-7]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([grad_norm, 1e-20]),
        torch.tensor([False, False]),
    )

    assert lr.tolist() == pytest.approx([1e-7, 1e-5], rel=1e-5)
    assert found.tolist() == [False, False]
