"""``LearnedLR`` in a plain torch loop, and its parity with the environment."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lrenv import InputError, LearnedLR, LRScheduleEnv
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy, load_policy, save_policy
from lrenv.policies.network import Head
from lrenv.trainees.mlp import MLPSpec, MLPTrainee, OptimizerSpec
from lrenv.trainees.registry import build_task, build_trainee

STEPS = 60


def make_policy(folder: Path, preset: str = "scale-free") -> FrozenPolicy:
    """A policy with random weights of a size that makes it act."""
    torch.manual_seed(0)
    actor = Head(preset, len(FEATURES) if preset == "scale-free" else 6)
    with torch.no_grad():
        actor.head.weight.mul_(3.0)
        actor.head.bias.fill_(0.1)
    return load_policy(save_policy(folder, f"random-{preset}", actor, {"preset": preset}))


@pytest.fixture
def policy(tmp_path: Path) -> FrozenPolicy:
    return make_policy(tmp_path)


def small_job(lr: float = 1e-3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LearnedLR,
    steps: range,
) -> list[float]:
    lrs = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return lrs


@pytest.mark.parametrize("preset", ["scale-free", "classic"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_environment_and_scheduler_agree_bit_for_bit(
    tmp_path: Path, preset: str, optimizer: str
) -> None:
    policy = make_policy(tmp_path, preset)
    env = LRScheduleEnv("mlp-mnist-classic", preset, total_steps=STEPS, optimizer=optimizer)
    env.reset(seed=0, options={"trainee_seed": 5})
    policy.start()
    env_lrs, done = [], False
    while not done:
        action = policy.act(env.controller)
        _, _, done, _, info = env.step(action.numpy())
        env_lrs.append(info["lr"])

    task = build_task("mlp-mnist-classic", STEPS, OptimizerSpec(optimizer), seed=5)
    trainee = build_trainee(task)
    scheduler = LearnedLR(trainee.optimizer, STEPS, policy)
    ends = set(scheduler.controller.plan.ends)
    for step in range(STEPS):
        loss = trainee.backward()
        trainee.optimizer.step()
        val = trainee.evaluate("val")[0] if step + 1 in ends else None
        scheduler.step(loss, val_loss=val)

    assert [d["lr"] for d in scheduler.decisions] == env_lrs
    assert len(set(env_lrs)) >= 3
    window = scheduler.controller.observer.window
    for name in ("loss", "lr", "grad_norm", "lc", "val_loss"):
        ours, theirs = getattr(window, name), getattr(env.window, name)
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num()), name


def test_hint_does_not_matter(policy: FrozenPolicy) -> None:
    runs = []
    for lr in (1e-5, 1e-1):
        model, optimizer = small_job(lr)
        runs.append(train(model, optimizer, LearnedLR(optimizer, STEPS, policy), range(STEPS)))
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 20


@pytest.mark.parametrize("stop", [1, 2, 17, 40])
def test_resume_is_exact(policy: FrozenPolicy, stop: int) -> None:
    model, optimizer = small_job()
    whole = train(model, optimizer, LearnedLR(optimizer, STEPS, policy), range(STEPS))

    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    first = train(model, optimizer, scheduler, range(stop))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    for part, state in zip((model, optimizer, scheduler), states, strict=True):
        part.load_state_dict(state)
    rest = train(model, optimizer, scheduler, range(stop, STEPS))
    assert first + rest == whole


def test_groups_keep_their_ratios(policy: FrozenPolicy) -> None:
    model, _ = small_job()
    layers = [model[0].parameters(), model[2].parameters()]
    optimizer = torch.optim.SGD(
        [{"params": layers[0], "lr": 0.1}, {"params": layers[1], "lr": 0.02, "lr_scale": 0.5}]
    )
    scheduler = LearnedLR(optimizer, STEPS, policy)
    train(model, optimizer, scheduler, range(20))
    first, second = scheduler.get_last_lr()
    assert second == pytest.approx(0.1 * first, rel=1e-12)


def test_tensor_lr_is_updated_in_place(policy: FrozenPolicy) -> None:
    model, _ = small_job()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3))
    held = optimizer.param_groups[0]["lr"]
    scheduler = LearnedLR(optimizer, STEPS, policy)
    train(model, optimizer, scheduler, range(20))
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(scheduler.decisions[-1]["lr"])


def test_steps_without_report_are_counted(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert scheduler.last_epoch == 5


def test_non_finite_loss_cuts_the_lr(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    train(model, optimizer, scheduler, range(10))
    while not scheduler.decisions[-1]["guarded"]:
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        scheduler.step(float("nan"))
    before, after = (d["lr"] for d in scheduler.decisions[-2:])
    assert after == pytest.approx(before * np.exp(-2.0), rel=1e-5)
    assert scheduler.get_last_lr() == [after]


def test_longer_run_than_announced_warns_once(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, 10, policy)
    train(model, optimizer, scheduler, range(10))
    with pytest.warns(UserWarning, match="Expected 10 optimizer steps, got more"):
        train(model, optimizer, scheduler, range(10, 13))


@pytest.mark.parametrize("total_steps", [0, -5, 2.5, True])
def test_bad_total_steps(policy: FrozenPolicy, total_steps: int) -> None:
    _, optimizer = small_job()
    with pytest.raises(InputError, match="Expected total_steps to be a whole number"):
        LearnedLR(optimizer, total_steps, policy)


def test_bad_unit(policy: FrozenPolicy) -> None:
    _, optimizer = small_job(lr=0.0)
    with pytest.raises(InputError, match="Expected a positive LR"):
        LearnedLR(optimizer, 10, policy)


def test_resume_needs_the_same_policy_and_length(policy: FrozenPolicy, tmp_path: Path) -> None:
    _, optimizer = small_job()
    state = LearnedLR(optimizer, STEPS, policy).state_dict()
    with pytest.raises(InputError, match="Expected the state of a run of 50"):
        LearnedLR(optimizer, 50, policy).load_state_dict(state)
    other = make_policy(tmp_path, "classic")
    with pytest.raises(InputError, match="Expected the state of a run under the policy"):
        LearnedLR(optimizer, STEPS, other).load_state_dict(state)


def test_classic_policy_refuses_another_architecture(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, "classic")
    spec = MLPSpec((16, 16), total_steps=STEPS)
    task = build_task("mlp-mnist-classic")
    from lrenv.trainees.families import load_data

    trainee = MLPTrainee(spec, load_data(task.data), 0)
    scheduler = LearnedLR(trainee.optimizer, STEPS, policy)
    loss = trainee.backward()
    trainee.optimizer.step()
    with pytest.raises(InputError, match="Expected a trainee of 2 layers"):
        scheduler.step(loss)
