"""The LR range test: what it finds, and that it leaves nothing behind."""

import copy
import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lrenv import LearnedLR
from lrenv.adaptive import ALRScheduler, LCSensitivityLR
from lrenv.errors import InputError
from lrenv.range_test import ABOVE_GRID, ABOVE_VALIDATED, BELOW_BEST, range_test


class Bowl(nn.Module):
    """A loss of ½·h·w² for w of 1: gradient descent is best at an LR of 1/h, diverges from 2/h."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.weight, self.curvature = nn.Parameter(torch.ones(1)), curvature

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=(0.5 * self.curvature * self.weight.square() * x).mean())


ONES = [{"x": torch.ones(2)}]


def test_a_sweep_of_a_bowl_ends_where_it_diverges():
    model = Bowl(curvature=10.0)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    found = range_test(model, optimizer, ONES, low=1e-4, mode="sweep", steps=100)

    assert found.lrs[0] == pytest.approx(1e-4)
    assert found.lrs[1] / found.lrs[0] == pytest.approx(1e5 ** (1 / 99))
    assert len(found.losses) == len(found.lrs) < 100
    assert found.losses[0] == pytest.approx(5.0, rel=1e-3)
    # smoothing sees the divergence, at 2 / h = 0.2, a few steps late
    assert 0.2 < found.lrs[-1] < 2.0
    assert "the loss diverged at an LR of" in found.stopped
    assert found.low < found.best < found.high
    assert found.suggestion == pytest.approx(found.best / BELOW_BEST)


@pytest.mark.parametrize("curvature", [0.1, 10.0])
def test_a_grid_finds_the_best_lr_of_a_bowl(curvature):
    model = Bowl(curvature)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    low, high = 1e-3 / curvature, 1e3 / curvature
    found = range_test(model, optimizer, ONES, low=low, high=high, steps=6, points=9)

    assert found.suggestion == found.best == pytest.approx(1 / curvature)
    assert found.lrs == pytest.approx([10**k / curvature for k in (-3, -2.25, -1.5, -0.75, 0)])
    assert found.stopped == f"the loss diverged at an LR of {10**0.75 / curvature:.2g}"
    assert (found.low, found.high) == pytest.approx((1 / curvature, 1 / curvature))


def test_a_grid_suggests_a_little_more_than_the_lowest_point_between_its_lrs():
    model = Bowl(1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    found = range_test(model, optimizer, ONES, low=0.5, high=1.5, steps=6, points=5)

    assert found.best == pytest.approx(0.5 * 3**0.5)
    assert found.lrs[2] < found.suggestion / ABOVE_GRID < found.lrs[3]


def test_a_grid_suggests_no_lr_beyond_those_that_train():
    model = Bowl(1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    found = range_test(model, optimizer, ONES, low=0.9, high=1.15, steps=6, points=5)

    assert found.best < found.lrs[-1]
    assert found.suggestion == found.lrs[-1]
    assert "but no more than 1.1, the highest LR that trained" in found.reason


def test_a_validated_grid_is_judged_by_its_validation():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)

    def loss(net: nn.Linear, target: Tensor) -> Tensor:
        assert net.training == (target.item() == 0.0)
        return 0.5 * (net.weight - target).square().sum()

    training, validation = [torch.zeros(1)], [torch.full((1,), 0.5), torch.full((1,), 0.7)]
    lrs = {"low": 0.01, "high": 1.0, "steps": 5, "points": 5}
    by_training = range_test(model, optimizer, training, loss, **lrs)
    found = range_test(model, optimizer, training, loss, validation=validation, **lrs)

    ends = [(1 - lr) ** 5 for lr in found.lrs]
    expected = [0.25 * ((w - 0.5) ** 2 + (w - 0.7) ** 2) for w in ends]
    assert found.losses == pytest.approx(expected, rel=1e-5)
    assert by_training.best == pytest.approx(1.0)
    assert found.best == pytest.approx(0.1)
    assert 0.1 / 10**0.25 < found.suggestion / ABOVE_VALIDATED < 0.1 * 10**0.25


def small_job() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)
    model = nn.Sequential(*layers)
    groups = [
        {"params": layers[0].parameters(), "lr": torch.tensor(0.02)},
        {"params": [*layers[1].parameters(), *layers[3].parameters()], "lr": 0.002},
    ]
    x = torch.randn(40, 4)
    loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)
    return model, torch.optim.AdamW(groups), loader


@pytest.mark.parametrize("mode", ["sweep", "grid", "validated"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(mode, fails):
    model, optimizer, loader = small_job()
    for x, y in loader:  # so that there are moments and averages
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model[2].eval()
    lr = optimizer.param_groups[0]["lr"]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    moments = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    lrs, calls = [], []

    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        calls.append(1)
        lrs.append([float(group["lr"]) for group in optimizer.param_groups])
        if fails and len(calls) == (22 if mode == "validated" else 15):
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    given = {"validation": loader} if mode == "validated" else {"mode": mode}
    if fails:
        with pytest.raises(KeyboardInterrupt):
            range_test(model, optimizer, loader, loss, steps=20, **given)
    else:
        range_test(model, optimizer, loader, loss, steps=20, **given)

    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert set(optimizer.state) == set(moments)
    for param, state in optimizer.state.items():
        assert all(torch.equal(value, moments[param][name]) for name, value in state.items())
    assert optimizer.param_groups[0]["lr"] is lr
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.02, 0.002])
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(second == pytest.approx(first / 10) for first, second in lrs)


def test_what_the_optimizer_and_the_loaders_have_beside_the_model_comes_back():
    model, _, loader = small_job()
    other = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), other], 0.1)
    other.grad = torch.full((3,), 2.0)
    held_out = DataLoader(loader.dataset, 8, shuffle=True, generator=torch.Generator())
    random = held_out.generator.get_state()

    def loss(net: nn.Module, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]) * other, batch[1])

    range_test(model, optimizer, loader, loss, validation=held_out, steps=5)

    assert other.tolist() == [1.0] * 3
    assert other.grad.tolist() == [2.0] * 3
    assert torch.equal(held_out.generator.get_state(), random)


def test_an_optimizer_that_needs_a_closure_is_refused():
    model, optimizer, loader = small_job()
    with pytest.raises(InputError, match="a model and its optimizer, got a AdamW and a Sequential"):
        range_test(optimizer, model, loader)
    with pytest.raises(InputError, match="a function of model and batch, got MSELoss"):
        range_test(model, optimizer, loader, nn.MSELoss())
    with pytest.raises(InputError, match="steps without a closure, got LBFGS"):
        range_test(model, torch.optim.LBFGS(model.parameters()), loader)


@pytest.mark.parametrize("make", [lambda o: LearnedLR(o, 200), ALRScheduler, LCSensitivityLR])
def test_a_scheduler_that_is_there_is_not_told(make):
    model, optimizer, loader = small_job()
    scheduler = make(optimizer)
    before = copy.deepcopy(scheduler.state_dict())
    range_test(model, optimizer, loader, low=1e-5, high=0.1, steps=20, points=5)
    assert str(scheduler.state_dict()) == str(before)

    x, y = next(iter(loader))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()
    assert str(scheduler.state_dict()) != str(before)


def test_batches_are_accumulated_and_may_be_few():
    model, seen = Bowl(1.0), []

    def loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append(float(batch["x"]))
        return net(**batch).loss

    batches = iter([{"x": torch.tensor([float(k)])} for k in (1, 2)])  # cannot start again
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    with pytest.raises(InputError, match="at least one batch, got none"):
        range_test(model, optimizer, batches, loss, accumulate=3, steps=5)
    assert seen == [1.0, 2.0]
    assert model.weight.item() == 1.0

    seen.clear()
    data = [{"x": torch.tensor([float(k)])} for k in (1, 2)]
    found = range_test(model, optimizer, data, loss, mode="sweep", accumulate=4, steps=5, high=1e-3)
    assert seen == [1.0, 2.0] * 10
    assert found.losses[0] == pytest.approx(0.5 * 1.5)


def test_half_precision_trains_by_scaled_gradients():
    model, optimizer, loader = small_job()
    found = range_test(model, optimizer, loader, precision=torch.bfloat16, high=1.0)
    assert all(math.isfinite(loss) for loss in found.losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.0}, "Expected 0 < low < high, got 0.0 and 10.0"),
        ({"low": 1.0, "high": 0.1}, "got 1.0 and 0.1"),
        ({"high": math.inf}, "got 1e-06 and inf"),
        ({"steps": 4}, "steps of at least 5, got 4"),
        ({"accumulate": 0}, "accumulate of at least 1, got 0"),
        ({"validation": ONES, "mode": "sweep"}, "validation with the mode grid alone, got sweep"),
        ({"validation": [], "steps": 5}, "at least one batch of validation, got none"),
        ({"points": 2}, "points of at least 3, got 2"),
        (
            {"low": 1e3, "high": 1e4},
            r"none did \(the loss diverged at an LR of 1e\+03\); lower low",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused(change, message):
    model = Bowl(1.0)
    with pytest.raises(InputError, match=message):
        range_test(model, torch.optim.SGD(model.parameters(), 1.0), ONES, **change)


def test_a_batch_of_another_kind_needs_a_loss():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    with pytest.raises(InputError, match="whole-number labels, got a Tensor; pass loss="):
        range_test(model, optimizer, [torch.ones(1)])
    with pytest.raises(InputError, match="got a tuple; pass loss="):
        range_test(model, optimizer, [(torch.ones(2, 1), torch.ones(2, 1))])
    with pytest.raises(InputError, match="a function of model and batch, got 'cross'"):
        range_test(model, optimizer, ONES, loss="cross")
    with pytest.raises(InputError, match="the mode sweep or grid, got 'gird'"):
        range_test(model, optimizer, ONES, mode="gird")


class Points(NamedTuple):
    """A batch."""

    x: Tensor
    y: Tensor


def test_all_lrs_meet_the_same_batches_and_random_numbers():
    model, optimizer, loader = small_job()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(loader.dataset, 8, shuffle=True, generator=generator)
    before, seen = generator.get_state(), []

    def loss(net: nn.Module, batch: Points) -> Tensor:
        seen.append((batch.x[0, 0].item(), torch.rand(()).item()))
        return nn.functional.cross_entropy(net(batch.x), batch.y)

    class Named:
        generator = loader.generator

        def __iter__(self):
            return (Points(*batch) for batch in loader)

    found = range_test(model, optimizer, Named(), loss, low=1e-4, high=1e-2, steps=8)

    assert len(seen) == 8 * len(found.lrs)
    assert seen == seen[:8] * len(found.lrs)
    assert torch.equal(generator.get_state(), before)
