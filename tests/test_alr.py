"""ALR by hand: averages, score, bounds, resume."""

import copy
import math

import pytest
import torch
from torch import nn

from lrenv.adaptive import ALRScheduler, LCSensitivityLR
from lrenv.errors import InputError


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def step(optimizer: torch.optim.Optimizer, gradient: list[float]) -> None:
    optimizer.param_groups[0]["params"][0].grad = torch.tensor(gradient)
    optimizer.step()


def test_two_steps_by_hand() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = ALRScheduler(optimizer)
    step(optimizer, [3.0, 4.0])
    # average 0.9 + 0.5; no activations: σ(1)
    score = 0.98 * sigmoid(5 / 1.4) + 0.02 * sigmoid(1.0)
    first = 0.75 * 0.1 + 0.25 * 0.1 / (1 + score)
    assert scheduler.get_last_lr() == pytest.approx([first])
    step(optimizer, [0.0, 1.0])
    score = 0.98 * sigmoid(1 / (0.9 * 1.4 + 0.1)) + 0.02 * sigmoid(1.0)
    assert scheduler.get_last_lr() == pytest.approx([0.75 * first + 0.25 * 0.1 / (1 + score)])
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]


def test_activations_count_while_training() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scheduler = ALRScheduler(optimizer, [layer])
    layer.eval()
    layer(torch.full((1, 2), 1e6))
    layer.train()
    layer(torch.tensor([[0.0, 3.0]]))
    layer(torch.tensor([[4.0, 0.0]]))
    step(optimizer, [[0.0, 0.0], [0.0, 0.0]])
    norm = math.sqrt((9 + 16) / 2)
    assert scheduler.averages == pytest.approx([0.9, 0.9 + 0.1 * norm])
    score = 0.98 * sigmoid(0.0) + 0.02 * sigmoid(norm / (0.9 + 0.1 * norm))
    assert scheduler.get_last_lr() == pytest.approx([0.075 + 0.025 / (1 + score)])
    scheduler.close()
    layer(torch.tensor([[0.0, 3.0]]))
    step(optimizer, [[0.0, 0.0], [0.0, 0.0]])
    assert scheduler.averages[1] == pytest.approx(0.9 + 0.1 * norm)


def test_it_is_nearly_constant() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ALRScheduler(optimizer)
    draw, lrs = torch.Generator().manual_seed(0), []
    for _ in range(200):
        step(optimizer, [10.0 ** float(4 * torch.randn((), generator=draw))])
        lrs.append(float(scheduler.get_last_lr()[0]))
    assert 0.5 < min(lrs[30:]) < max(lrs[30:]) < 0.6671


def test_norms_that_are_not_finite_are_skipped_and_bounds_kept() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ALRScheduler(optimizer, min_lr=0.9, max_lr=2.0)
    step(optimizer, [math.inf])
    assert scheduler.averages == [1.0, 1.0]
    assert scheduler.get_last_lr() == pytest.approx([0.75 + 0.25 * 0.9])
    with pytest.raises(InputError, match=r"min_lr below max_lr, got 2\.0 and 1\.0"):
        ALRScheduler(optimizer, min_lr=2.0, max_lr=1.0)


def test_copies_act_and_groups_may_be_added() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    first = ALRScheduler(optimizer)
    for scheduler in (first, copy.deepcopy(first)):
        owned = scheduler.optimizer
        owned.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": torch.tensor(0.2)})
        step(owned, [3.0, 4.0])
        lrs = scheduler.get_last_lr()
        assert lrs[1] == pytest.approx(2 * lrs[0])
        assert lrs[0] < 0.1


def test_norms_of_half_precision_do_not_overflow() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(10, dtype=torch.half))], lr=1.0)
    scheduler = ALRScheduler(optimizer)
    optimizer.param_groups[0]["params"][0].grad = torch.full((10,), 100.0, dtype=torch.half)
    optimizer.step()
    assert scheduler.averages[0] == pytest.approx(0.9 + 0.1 * 1000**0.5 * 10)


@pytest.mark.parametrize("dtype", [torch.double, torch.complex64])
def test_other_types_have_norms_too(dtype: torch.dtype) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=dtype))], lr=1.0)
    scheduler = ALRScheduler(optimizer)
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([3.0, 4.0], dtype=dtype)
    optimizer.step()
    assert scheduler.averages[0] == pytest.approx(0.9 + 0.5)


def test_a_state_is_a_copy_and_no_other_s() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ALRScheduler(optimizer)
    step(optimizer, [2.0])
    state = scheduler.state_dict()
    kept = copy.deepcopy(state)
    step(optimizer, [5.0])
    assert state == kept
    with pytest.raises(InputError, match="state of a ALRScheduler, got that of something else"):
        scheduler.load_state_dict(LCSensitivityLR(optimizer).state_dict())


def test_resume_is_exact() -> None:
    def start():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, ALRScheduler(optimizer)

    whole, stopped, resumed = start(), start(), start()
    for gradient in (2.0, 5.0, 0.1, 3.0):
        step(whole[0], [gradient])
    for gradient in (2.0, 5.0):
        step(stopped[0], [gradient])
    for old, new in zip(stopped, resumed, strict=True):
        new.load_state_dict(old.state_dict())
    for gradient in (0.1, 3.0):
        step(resumed[0], [gradient])
    assert resumed[1].get_last_lr() == whole[1].get_last_lr()
    assert resumed[1].averages == whole[1].averages
