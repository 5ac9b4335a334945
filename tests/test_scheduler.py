"""``LearnedLR`` in a plain torch loop, and its parity with the environment."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lrenv import InputError, LearnedLR, LRScheduleEnv
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy, load_policy, save_policy
from lrenv.policies.network import Head
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec

STEPS = 60


def make_policy(folder: Path, preset: str = "scale-free") -> FrozenPolicy:
    """A policy with random weights of a size that makes it act."""
    torch.manual_seed(0)
    actor = Head(preset, len(FEATURES) if preset == "scale-free" else 6)
    with torch.no_grad():
        actor.head.bias.fill_(-0.05)  # so that no LR is too high
    return load_policy(save_policy(folder, f"random-{preset}", actor, {"preset": preset}))


@pytest.fixture
def policy(tmp_path: Path) -> FrozenPolicy:
    return make_policy(tmp_path)


def small_job(lr: float = 1e-3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


Job = tuple[nn.Module, torch.optim.Optimizer, LearnedLR]


def scheduled(policy: FrozenPolicy, total_steps: int | None = STEPS) -> Job:
    model, optimizer = small_job()
    return model, optimizer, LearnedLR(optimizer, total_steps, policy)


def optimizer_steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int = 1) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().mean().backward()
        optimizer.step()


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
    with pytest.warns(UserWarning, match="Expected a training loss"):
        optimizer_steps(model, optimizer, 5)
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert scheduler.last_epoch == 5


def test_non_finite_loss_cuts_the_lr(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    train(model, optimizer, scheduler, range(10))
    while not scheduler.decisions[-1]["guard"]:
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


def test_total_steps_may_be_a_number_of_numpy(policy: FrozenPolicy) -> None:
    runs = []
    for total_steps in (STEPS, np.int64(STEPS)):
        job = scheduled(policy, total_steps)
        runs.append(train(*job, range(STEPS)))
        assert type(job[2].state_dict()["controller"]["total_steps"]) is int
    assert runs[0] == runs[1]


def test_bad_unit(policy: FrozenPolicy) -> None:
    _, optimizer = small_job(lr=0.0)
    with pytest.raises(InputError, match="Expected a positive LR"):
        LearnedLR(optimizer, 10, policy)


@pytest.mark.parametrize("new", [45, 100])
def test_a_run_is_made_longer_or_shorter_by_itself_and_at_a_resume(
    policy: FrozenPolicy, new: int
) -> None:
    changed, stopped = scheduled(policy), scheduled(policy)
    same = train(*changed, range(30))
    assert train(*stopped, range(30)) == same
    changed[2].set_total_steps(new)
    resumed = scheduled(policy, new)
    for part, old in zip(resumed, stopped, strict=True):
        part.load_state_dict(copy.deepcopy(old.state_dict()))

    lrs = train(*changed, range(30, new))
    assert train(*resumed, range(30, new)) == lrs
    assert changed[2].controller.done
    assert changed[2].decisions[-1]["step"] > new - 5
    with pytest.raises(InputError, match=f"at least {new + 1} optimizer steps, got 30; pass"):
        changed[2].set_total_steps(30)


def test_a_run_without_an_end_goes_on_until_it_is_finished(policy: FrozenPolicy) -> None:
    job = scheduled(policy, None)
    train(*job, range(1300))
    lefts = [d["features"]["left"] for d in job[2].decisions]
    assert min(lefts) >= -0.01  # half of the run, scaled to [-1, 1]
    assert job[2].controller.plan.total_steps == 4000

    resumed = scheduled(policy, None)
    for part, old in zip(resumed, job, strict=True):
        part.load_state_dict(copy.deepcopy(old.state_dict()))
    job[2].finish(100)
    lrs = train(*job, range(1300, 1400))
    assert job[2].controller.done
    assert job[2].decisions[-1]["features"]["left"] < -0.9

    resumed[2].finish(100)
    assert train(*resumed, range(1300, 1400)) == lrs


def test_tensors_get_lc_s_multiples_of_the_learned_lr(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy, layerwise="lc")
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([g["lr"] for g in o.param_groups]))
    train(model, optimizer, scheduler, range(30))
    state = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, scheduler)]

    assert len(optimizer.param_groups) == 4
    assert len(set(scheduler.get_last_lr())) == 1
    assert len(set(used[-1])) > 1
    last = [row for row in used if len(set(row)) > 1][-1]
    assert sum(last) / 4 in [pytest.approx(d["lr"]) for d in scheduler.decisions]
    assert len(set(scheduler.multipliers)) > 1

    rest = train(model, optimizer, scheduler, range(30, STEPS))
    resumed, other = small_job()
    again = LearnedLR(other, STEPS, policy, layerwise="lc")
    for part, saved in zip((resumed, other, again), state, strict=True):
        part.load_state_dict(saved)
    assert train(resumed, other, again, range(30, STEPS)) == rest
    with pytest.raises(InputError, match="layerwise to be None or 'lc', got 'x'"):
        LearnedLR(optimizer, STEPS, policy, layerwise="x")


def test_lc_multiplies_what_was_decided_within_the_step(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy, layerwise="lc")
    with pytest.warns(UserWarning, match="Expected a training loss"):
        optimizer_steps(model, optimizer, 20)  # decisions fall within the steps
    assert scheduler.get_last_lr() == [float(scheduler.controller.lr)] * 4
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr()

    new = nn.Parameter(torch.ones(3))
    new.grad = torch.full((3,), torch.inf)
    optimizer.add_param_group({"params": [new], "lr": 0.1})
    optimizer.step()
    assert optimizer.param_groups[4]["initial_lr"] == 0.1


def test_a_copy_keeps_lc(policy: FrozenPolicy) -> None:
    job = (*small_job(),)
    original = (*job, LearnedLR(job[1], STEPS, policy, layerwise="lc"))
    train(*original, range(17))
    copied = copy.deepcopy(original)
    assert train(*copied, range(17, STEPS)) == train(*original, range(17, STEPS))
    weights = [nn.utils.parameters_to_vector(m.parameters()) for m, _, _ in (original, copied)]
    assert torch.equal(*weights)


def test_layerwise_must_agree_at_a_resume(policy: FrozenPolicy) -> None:
    for first, second, word in (("lc", None, "with"), (None, "lc", "without")):
        state = LearnedLR(small_job()[1], STEPS, policy, layerwise=first).state_dict()
        other = LearnedLR(small_job()[1], STEPS, policy, layerwise=second)
        with pytest.raises(InputError, match=f"same layerwise, got one {word} it; resume"):
            other.load_state_dict(state)


def test_a_resume_keeps_a_length_that_was_changed(policy: FrozenPolicy) -> None:
    job = scheduled(policy)
    train(*job, range(30))
    job[2].set_total_steps(100)
    train(*job, range(30, 70))
    resumed = scheduled(policy)
    for part, old in zip(resumed, job, strict=True):
        part.load_state_dict(copy.deepcopy(old.state_dict()))
    assert train(*resumed, range(70, 100)) == train(*job, range(70, 100))
    with pytest.raises(InputError, match="at least 101 optimizer steps, got 50"):
        scheduled(policy, 50)[2].load_state_dict(job[2].state_dict())


def test_intervals_join_without_gaps_in_a_run_without_an_end(policy: FrozenPolicy) -> None:
    job, seen = scheduled(policy, None), []
    update = job[2].controller.observer.update
    job[2].controller.observer.update = lambda interval, lr: (
        seen.append((interval.start, interval.end)),
        update(interval, lr),
    )
    train(*job, range(1300))
    assert [start for start, _ in seen[1:]] == [end for _, end in seen[:-1]]
    assert seen[-1][1] == job[2].controller.plan.ends[len(seen) - 1]


def test_losses_past_the_end_are_not_kept(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy, 10)
    with pytest.warns(UserWarning, match="got more"):
        train(model, optimizer, scheduler, range(30))
    assert scheduler.state_dict()["losses"] == []


def test_a_scheduler_is_pickled_and_takes_losses_of_inference_mode(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)
    train(model, optimizer, scheduler, range(5))
    with torch.inference_mode():
        loss = model(torch.ones(4, 6)).square().mean()
    scheduler.step(loss)
    again = pickle.loads(pickle.dumps(scheduler))
    assert again.get_last_lr() == scheduler.get_last_lr()


def test_what_is_no_optimizer_loss_or_model_is_refused(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    with pytest.raises(InputError, match="Expected a torch optimizer, got a Sequential"):
        LearnedLR(model, 100, policy)
    for wrong in (nn.Linear(6, 8), True):
        with pytest.raises(InputError, match=r"rollback, got a (Linear|bool) that lacks some"):
            LearnedLR(optimizer, 100, policy, rollback=wrong)
    scheduler = LearnedLR(optimizer, 100, policy)
    optimizer_steps(model, optimizer)
    for epoch in (3, "0.5"):
        with pytest.raises(InputError, match="training loss, a tensor or float, got"):
            scheduler.step(epoch)
    with pytest.raises(InputError, match="scalar validation loss, got the shape"):
        scheduler.step(1.0, val_loss=torch.ones(3))
    with pytest.raises(TypeError):
        scheduler.step(1.0, 5)
    with pytest.raises(InputError, match="state of a LearnedLR, got that of another scheduler"):
        scheduler.load_state_dict({"last_epoch": 3})


def test_short_runs_and_lost_weights_are_warned_of(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    with pytest.warns(UserWarning, match=r"at least 100 optimizer steps, .* got 50: its LR may"):
        scheduler = LearnedLR(optimizer, 50, policy)
    train(model, optimizer, scheduler, range(20))
    optimizer_steps(model, optimizer)
    with pytest.warns(UserWarning, match=r"the loss was not finite, .* rollback=model"):
        scheduler.step(float("nan"))


def test_the_lr_does_not_rise_once_a_run_is_to_finish(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    with torch.no_grad():
        policy.actor.head.bias.fill_(0.2)  # rises at every decision
    model, optimizer, scheduler = scheduled(policy, None)
    lrs = train(model, optimizer, scheduler, range(30))
    (ceiling,) = scheduler.get_last_lr()
    scheduler.finish(30)
    after = train(model, optimizer, scheduler, range(30, 60))
    assert lrs[-1] > 10 * lrs[5]
    assert max(after) == pytest.approx(ceiling)


def test_losses_may_be_reported_apart(policy: FrozenPolicy) -> None:
    lrs = []
    for apart in (False, True):
        model, optimizer, scheduler = scheduled(policy)
        for step in range(STEPS):
            optimizer_steps(model, optimizer)
            if apart:
                scheduler.report(1.0 / (step + 1), val_loss=2.0)
                scheduler.step()
            else:
                scheduler.step(1.0 / (step + 1), val_loss=2.0)
        lrs.append([d["lr"] for d in scheduler.decisions])
    assert lrs[0] == lrs[1]


def test_resume_needs_the_same_policy(policy: FrozenPolicy, tmp_path: Path) -> None:
    _, optimizer = small_job()
    state = LearnedLR(optimizer, STEPS, policy).state_dict()
    other = make_policy(tmp_path, "classic")
    with pytest.raises(InputError, match="Expected the state of a run under the policy"):
        LearnedLR(optimizer, STEPS, other).load_state_dict(state)


def test_classic_policy_refuses_another_architecture(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, "classic")
    spec = MLPSpec((16, 16), total_steps=STEPS)
    task = build_task("mlp-mnist-classic")
    from lrenv.trainees.tasks import load_data

    trainee = SingleTrainee(spec, load_data(task.data), 0)
    scheduler = LearnedLR(trainee.optimizer, STEPS, policy)
    loss = trainee.backward()
    trainee.optimizer.step()
    with pytest.raises(InputError, match="Expected a trainee of 2 layers"):
        scheduler.step(loss)


def test_schedulers_may_share_a_policy(policy: FrozenPolicy) -> None:
    starts = (0, 100)
    alone = [train(*scheduled(policy), range(start, start + STEPS)) for start in starts]
    jobs = [scheduled(policy) for _ in starts]
    in_turn: list[list[float]] = [[], []]
    for step in range(STEPS):
        for lrs, job, start in zip(in_turn, jobs, starts, strict=True):
            lrs += train(*job, range(start + step, start + step + 1))
    assert in_turn == alone
    assert alone[0] != alone[1]


def test_a_copy_goes_on_like_the_original(policy: FrozenPolicy) -> None:
    whole = train(*scheduled(policy), range(STEPS))
    original = scheduled(policy)
    train(*original, range(17))
    copied = copy.deepcopy(original)
    # in turn, so that neither can lean on the other
    lrs = [[], []]
    for step in range(17, STEPS):
        for seen, job in zip(lrs, (original, copied), strict=True):
            seen += train(*job, range(step, step + 1))
    assert lrs == [whole[17:], whole[17:]]
    weights = [nn.utils.parameters_to_vector(m.parameters()) for m, _, _ in (original, copied)]
    assert torch.equal(*weights)
    assert copied[2].decisions == original[2].decisions


def test_a_layer_unfrozen_later_survives_a_resume(policy: FrozenPolicy) -> None:
    job = scheduled(policy)
    job[0][0].requires_grad_(False)
    train(*job, range(20))
    job[0][0].requires_grad_(True)
    train(*job, range(20, 30))
    states = copy.deepcopy([part.state_dict() for part in job])
    rest = train(*job, range(30, STEPS))
    resumed = scheduled(policy)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert train(*resumed, range(30, STEPS)) == rest
    assert len(set(rest)) > 5


def test_a_group_added_later_has_its_ratio_at_once(policy: FrozenPolicy) -> None:
    model, _ = small_job()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LearnedLR(optimizer, STEPS, policy)
    train(model, optimizer, scheduler, range(10))
    new = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [new], "lr": 0.02})
    new.grad = torch.ones(3)
    (lr,) = scheduler.get_last_lr()
    optimizer.step()
    assert new.tolist() == pytest.approx([-0.2 * lr] * 3, rel=1e-6, abs=0)
    scheduler.step(1.0)
    train(model, optimizer, scheduler, range(11, 20))
    first, second = scheduler.get_last_lr()
    assert first != lr
    assert second == pytest.approx(0.2 * first, rel=1e-12)


def test_a_step_without_gradients_is_refused(policy: FrozenPolicy) -> None:
    _, optimizer, _ = scheduled(policy)
    with pytest.raises(InputError, match=r"Expected gradients .*, got none; call loss\.backward"):
        optimizer.step()


def test_sparse_gradients_and_empty_parameters(policy: FrozenPolicy) -> None:
    runs = []
    for odd in (False, True):
        torch.manual_seed(1)
        table, head = nn.Embedding(20, 6, sparse=odd), nn.Linear(6, 3)
        params = [*table.parameters(), *head.parameters()]
        empty = nn.Parameter(torch.empty(0, 3))
        optimizer = torch.optim.SGD([empty, *params] if odd else params, lr=0.1)
        scheduler = LearnedLR(optimizer, STEPS, policy)
        for step in range(20):
            ids = torch.randperm(20, generator=torch.Generator().manual_seed(step))[:8]
            loss = head(table(ids)).square().mean() + empty.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
        assert table.weight.grad.is_sparse == odd
        runs.append([d["lr"] for d in scheduler.decisions])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert len(set(runs[0])) > 10


def test_a_job_without_losses_is_warned_once(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)
    optimizer_steps(model, optimizer)
    with pytest.warns(UserWarning, match="Expected a training loss, got none") as caught:
        scheduler.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for _ in range(9):  # warnings are errors here
        optimizer_steps(model, optimizer)
        scheduler.step()
    assert scheduler.last_epoch == 10


def test_a_loss_of_several_values_is_refused(policy: FrozenPolicy) -> None:
    _, _, scheduler = scheduled(policy)
    with pytest.raises(InputError, match=r"scalar training loss, got the shape \(4,\); pass"):
        scheduler.step(torch.ones(4))


def test_losses_between_optimizer_steps_are_averaged(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)
    for step in range(3):
        scheduler.step(1.0 + step)
        optimizer_steps(model, optimizer)
        scheduler.step(torch.tensor(3.0 + step))
    assert scheduler.controller.observer.window.loss.tolist() == [[2.0, 3.0, 4.0]]


def test_a_loss_may_be_overwritten_afterwards(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy, total_steps=1000)
    loss = torch.zeros(())
    ends = scheduler.controller.plan.ends
    n_steps = next(end for start, end in pairwise(ends) if end - start > 1)
    for step in range(n_steps):
        scheduler.step(loss.fill_(step))
        loss.fill_(-1.0)
        optimizer_steps(model, optimizer)
        scheduler.step(loss.fill_(step + 2))
        loss.fill_(-1.0)
    window = scheduler.controller.observer.window
    assert window.loss.tolist() == [[step + 1.0 for step in range(n_steps)]]
