"""Bad losses, gradients and functions: the LR stays sane, and the job goes on."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lrenv import LearnedLR, load_policy
from lrenv.action import LOG_RANGE

POLICY = load_policy()
MODES = st.sampled_from(["fine", "skipped", "no loss", "no gradients", "twice", "replaced"])
VALUES = st.one_of(
    st.floats(width=32),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e38, 1e-38, 1.0]),
)
EVENTS = st.lists(
    st.tuples(MODES, VALUES, VALUES, st.one_of(st.none(), VALUES)), min_size=1, max_size=30
)


def job(**kwargs) -> tuple[nn.Module, torch.optim.Optimizer, LearnedLR]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    if kwargs.pop("rollback", False):
        kwargs["rollback"] = model
    return model, optimizer, LearnedLR(optimizer, 40, POLICY, **kwargs)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: float = 1.0) -> None:
    for param in model.parameters():
        param.grad = torch.full_like(param, gradient)
    optimizer.step()


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS, rollback=st.booleans())
def test_no_sequence_of_faults_breaks_a_job(events, rollback) -> None:
    suffer(events, rollback)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(events=EVENTS, rollback=st.booleans())
def test_none_of_a_thousand_sequences_of_faults_breaks_a_job(events, rollback) -> None:
    suffer(events, rollback)


def suffer(events: list[tuple[str, float, float, float | None]], rollback: bool) -> None:
    """Train under faults, and check that the LR stays finite, positive and within bounds."""
    model, optimizer, scheduler = job(rollback=rollback)
    lrs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode, loss, gradient, val_loss in itertools.islice(itertools.cycle(events), 45):
            if mode == "no gradients":
                for param in model.parameters():
                    param.grad = None
                if (
                    scheduler._reader.places
                ):  # refused at the first step, as nothing could be measured
                    optimizer.step()
            elif mode != "skipped":
                for _ in range(2 if mode == "twice" else 1):
                    take_step(model, optimizer, gradient)
            if mode == "replaced":
                with torch.no_grad():
                    next(model.parameters()).fill_(loss)
            scheduler.step(None if mode == "no loss" else loss, val_loss=val_loss)
            lrs += scheduler.get_last_lr()

    start = scheduler.controller._start_lr
    assert all(math.isfinite(lr) and lr > 0 for lr in lrs)
    if start is not None:
        chosen = [d["lr"] for d in scheduler.decisions]
        bounds = [float(start) * math.exp(bound) for bound in LOG_RANGE]
        assert all(bounds[0] * (1 - 1e-5) <= lr <= bounds[1] * (1 + 1e-5) for lr in chosen)
    assert all(math.isfinite(v) for d in scheduler.decisions for v in d["features"].values())
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def test_an_exploding_loss_cuts_the_lr() -> None:
    model, optimizer, scheduler = job()
    for step in range(40):
        take_step(model, optimizer)
        scheduler.step(1.0 if step < 20 else 3.5)

    guards = {d["step"]: d["guard"] for d in scheduler.decisions}
    assert {step for step, guard in guards.items() if guard} == {
        step for step in guards if step >= 28
    }
    assert set(guards.values()) == {None, "the loss exploded"}


def test_the_loss_of_a_skipped_step_is_none_of_the_next() -> None:
    model, optimizer, scheduler = job(rollback=True)
    for step in range(40):
        if step % 7 == 3:
            scheduler.step(math.nan)  # as where gradients overflow
        take_step(model, optimizer)
        scheduler.step(1.0)

    assert not any(d["guard"] for d in scheduler.decisions)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_noise_is_no_explosion(sign: float) -> None:
    model, optimizer, scheduler = job()
    for step in range(40):
        take_step(model, optimizer)
        scheduler.step(sign * (0.2 if step % 5 == 0 else 9.0 if step > 10 else 1.0))

    assert not any(d["guard"] for d in scheduler.decisions)


@pytest.mark.parametrize(("bad", "reason"), [(math.nan, "not finite"), (50.0, "exploded")])
def test_a_run_comes_back_to_its_last_good_weights(bad: float, reason: str) -> None:
    model, optimizer, scheduler = job(rollback=True)
    x, states, moments = torch.randn(8, 3), [], []
    for step in range(40):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 20:  # an update under a loss that is still fine
            model[0].weight.grad.fill_(math.nan)
            with torch.no_grad():
                model[1].running_mean.fill_(math.nan)
        optimizer.step()
        scheduler.step(bad if step > 20 else 1.0)
        last = scheduler.decisions[-1] if scheduler.decisions else {"guard": None}
        if last["guard"]:
            break
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        moments.append([s["exp_avg"].clone() for s in optimizer.state.values()])

    assert reason in last["guard"]
    assert last["rolled_back"]
    weight = model[0].weight
    (place,) = [k for k, state in enumerate(states) if torch.equal(weight, state["0.weight"])]
    assert 16 <= place < 20
    assert all(torch.equal(v, states[place][k]) for k, v in model.state_dict().items())
    seen = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(seen, moments[place], strict=True))


@pytest.mark.parametrize("kept", ["come back", "stay as they are"])
def test_the_last_interval_is_judged_too(kept: str) -> None:
    model, optimizer, scheduler = job(rollback=kept == "come back")
    last = scheduler.controller.plan.ends[-2]
    for step in range(39):
        take_step(model, optimizer, math.nan if step >= last else 1.0)
        scheduler.step(math.nan if step >= last else 1.0)
    take_step(model, optimizer, math.nan)
    with pytest.warns(UserWarning, match=f"In the last interval .* the weights {kept}"):
        scheduler.step(math.nan)

    assert not any(d["guard"] for d in scheduler.decisions)
    assert bool(model[0].weight.isfinite().all()) == (kept == "come back")


def test_layers_that_train_later_come_back_to_what_they_were() -> None:
    model, optimizer, scheduler = job(rollback=True)
    layer = model[0].weight.requires_grad_(False)
    before = layer.clone()
    for step in range(40):
        bad = math.nan if step >= 25 else 1.0
        layer.requires_grad_(step >= 25)
        for param in model.parameters():
            param.grad = torch.full_like(param, bad) if param.requires_grad else None
        optimizer.step()
        assert step < 25 or layer.isnan().all()
        scheduler.step(bad)
        if scheduler.decisions and scheduler.decisions[-1]["rolled_back"]:
            break

    assert step >= 25
    assert torch.equal(layer, before)
