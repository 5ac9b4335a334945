"""Unusual models under ``LearnedLR``: mixed and complex types, parameters that come and go."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from jobs import optimizer_steps
from torch import Tensor, nn

from lrenv import LearnedLR, load_policy
from lrenv.policies.frozen import FrozenPolicy


class Mixed(nn.Module):
    """A real, a complex and a double layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3).double()
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        bent = torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.spectrum, n=4)
        return self.last(bent.double()).float()


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LearnedLR, n: int):
    """Losses of steps on points on two sides of a plane."""
    losses = []
    for step in range(n):
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        losses.append(loss.item())
    return losses


def test_complex_and_double_parameters_train() -> None:
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.AdamW(model.parameters())
    losses = learn(model, optimizer, LearnedLR(optimizer, 200), 200)

    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


@pytest.fixture
def bfloat16_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_type_does_not_matter(bfloat16_by_default: None) -> None:
    policy = load_policy()
    assert {p.dtype for p in policy.actor.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.bfloat16
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LearnedLR(optimizer, 100, policy)
    for _ in range(20):
        optimizer_steps(model, optimizer)
        scheduler.step(1.0)

    assert len(scheduler.decisions) > 10
    assert all(0 < d["lr"] < math.inf for d in scheduler.decisions)


def two_layers(policy: FrozenPolicy) -> tuple[nn.Module, torch.optim.Optimizer, LearnedLR]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16))
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters())
    return model, optimizer, LearnedLR(optimizer, 300, policy)


def test_layers_that_take_over_are_measured() -> None:
    model, optimizer, scheduler = two_layers(load_policy())
    body, head = model[0], model[2]
    body.requires_grad_(False)
    learn(model, optimizer, scheduler, 100)
    body.requires_grad_(True)
    head.requires_grad_(False)
    head.weight.grad = head.bias.grad = None
    losses = learn(model, optimizer, scheduler, 200)

    assert scheduler._reader.places == [0, 1, 2, 3]
    assert max(d["lr"] for d in scheduler.decisions) < 0.3
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    features = [d["features"] for d in scheduler.decisions if d["step"] >= 104]
    for name in ("grad_norm_median", "weight_growth", "straightness"):
        assert max(abs(seen[name]) for seen in features) < 2, name


def test_layers_may_take_turns_from_the_first_step(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = two_layers(policy)
    for step in range(40):
        for part, trains in ((model[0], step % 2 == 0), (model[2], step % 2 == 1)):
            part.requires_grad_(trains)
            for param in part.parameters():
                param.grad = None
        learn(model, optimizer, scheduler, 1)

    assert all(math.isfinite(v) for d in scheduler.decisions for v in d["features"].values())


def test_parameters_may_be_replaced_by_others(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = two_layers(policy)
    learn(model, optimizer, scheduler, 100)
    before = scheduler.decisions[-1]["step"]
    model[0], model[2] = nn.Linear(4, 20), nn.Linear(20, 3)
    model.insert(2, nn.Linear(20, 20))
    optimizer.param_groups[0]["params"][:] = list(model.parameters())
    learn(model, optimizer, scheduler, 200)

    assert scheduler.controller.done
    later = [d for d in scheduler.decisions if d["step"] > before]
    assert scheduler.controller.observer.window.grad_norm.shape[2] == 3
    assert all(math.isfinite(v) for d in later for v in d["features"].values())
    assert any(d["features"]["momentum_cos"] for d in later)


def test_a_step_without_gradients_changes_nothing_that_is_measured(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = two_layers(policy)
    learn(model, optimizer, scheduler, 10)
    places = scheduler._reader.places
    optimizer.zero_grad()
    optimizer.step()
    scheduler.step(1.0)
    learn(model, optimizer, scheduler, 10)

    assert scheduler._reader.places is places
