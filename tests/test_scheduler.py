"""``LearnedLR`` in a plain torch loop, and its parity with the environment."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import STEPS, make_policy, optimizer_steps, scheduled, small_job, train
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from lrenv import InputError, LearnedLR, LRScheduleEnv
from lrenv.errors import PolicyFileError
from lrenv.policies.frozen import FrozenPolicy
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec


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

    task = build_task("mlp-mnist-classic", STEPS, OptimizerSpec.usual(optimizer), seed=5)
    trainee = build_trainee(task)
    scheduler = LearnedLR(trainee.optimizer, STEPS, policy, steps_per_epoch=trainee.steps_per_epoch)
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


def test_another_hand_on_the_lr_is_told_of_once(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)
    train(model, optimizer, scheduler, range(20))

    def overrule() -> None:
        for _ in range(30):
            optimizer.param_groups[0]["lr"] = 0.5
            train(model, optimizer, scheduler, [0])

    with pytest.warns(UserWarning, match=r"set, got 0\.5: something else sets it too") as told:
        overrule()
    assert len(told) == 1


def test_a_log_of_tensor_lrs_holds_each_of_them(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)
    scheduler = LearnedLR(optimizer, STEPS, policy)
    log = []
    for step in range(20):
        train(model, optimizer, scheduler, [step])
        log.append(scheduler.get_last_lr()[0])
    assert len({float(lr) for lr in log}) > 5


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


def test_bad_unit(policy: FrozenPolicy) -> None:
    _, optimizer = small_job(lr=0.0)
    with pytest.raises(InputError, match="Expected a positive LR"):
        LearnedLR(optimizer, 10, policy)


@pytest.mark.parametrize("bad", [0, -1.0, float("inf"), float("nan"), "32", True])
def test_what_is_no_number_of_steps_in_an_epoch_is_refused(policy: FrozenPolicy, bad) -> None:
    _, optimizer = small_job()
    with pytest.raises(
        InputError, match=r"positive number of optimizer steps, got .*len\(loader\)"
    ):
        LearnedLR(optimizer, 100, policy, steps_per_epoch=bad)


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
    with pytest.raises(InputError, match="state of a LearnedLR, got that of something else"):
        scheduler.load_state_dict({"last_epoch": 3})
    with pytest.raises(InputError, match="state of a LearnedLR"):
        scheduler.load_state_dict(None)
    with pytest.raises(PolicyFileError, match="name or path, got 3"):
        LearnedLR(optimizer, 100, 3)


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
    scheduler = LearnedLR(trainee.optimizer, STEPS, policy, steps_per_epoch=trainee.steps_per_epoch)
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


@pytest.mark.parametrize("when", ["before", "between", "behind"])
def test_it_does_not_matter_when_a_group_is_added(policy: FrozenPolicy, when: str) -> None:
    model, optimizer, scheduler = scheduled(policy)
    unit = optimizer.param_groups[0]["initial_lr"]
    added = {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1 * unit}
    last = scheduler.controller.plan.ends[5]  # decides behind this step
    train(model, optimizer, scheduler, range(last - 1))
    for moment in ("before", "between", "behind"):
        if moment == when:
            optimizer.add_param_group(added)
        if moment == "before":
            optimizer_steps(model, optimizer)
        elif moment == "between":
            scheduler.step(1.0)
    train(model, optimizer, scheduler, range(last, last + 3))

    assert optimizer.param_groups[1]["initial_lr"] == pytest.approx(0.1 * unit)
    ratio = float(optimizer.param_groups[1]["lr"]) / float(optimizer.param_groups[0]["lr"])
    assert ratio == pytest.approx(0.1)


def test_what_is_refused_leaves_the_optimizer_as_it_was(policy: FrozenPolicy) -> None:
    _, optimizer = small_job()
    for settings in ({"total_steps": 0}, {"total_steps": 100, "rollback": nn.Linear(1, 1)}):
        with pytest.raises(InputError):
            LearnedLR(optimizer, policy=policy, layerwise="lc", **settings)
    assert len(optimizer.param_groups) == 1


def test_a_state_that_lacks_something_is_refused(policy: FrozenPolicy) -> None:
    _, _, scheduler = scheduled(policy)
    state = scheduler.state_dict()
    del state["layerwise"]
    with pytest.raises(InputError, match="Expected the state of a LearnedLR"):
        scheduler.load_state_dict(state)


def test_the_policy_does_not_follow_the_autocast_of_a_job(policy: FrozenPolicy) -> None:
    lrs = []
    for enabled in (False, True):
        model, optimizer, scheduler = scheduled(policy)
        for _ in range(STEPS):
            optimizer_steps(model, optimizer)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                scheduler.step(1.0)
        lrs.append([d["lr"] for d in scheduler.decisions])
    assert lrs[0] == lrs[1]


def test_a_step_without_gradients_is_refused(policy: FrozenPolicy) -> None:
    _, optimizer, _ = scheduled(policy)
    with pytest.raises(InputError, match=r"Expected gradients .*, got none; call loss\.backward"):
        optimizer.step()


def test_a_scheduler_whose_optimizer_never_steps_says_so(policy: FrozenPolicy) -> None:
    _, _, scheduler = scheduled(policy)
    for _ in range(98):
        scheduler.step(1.0)
    with pytest.warns(UserWarning, match=r"Expected optimizer.step\(\) ahead of scheduler.step"):
        scheduler.step(1.0)


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


WARM = 12


def behind_a_warmup(policy: FrozenPolicy) -> tuple[nn.Module, torch.optim.Optimizer, SequentialLR]:
    model, optimizer = small_job()
    warmup = LinearLR(optimizer, 0.1, total_iters=WARM)
    parts = [warmup, LearnedLR(optimizer, STEPS - WARM, policy)]
    return model, optimizer, SequentialLR(optimizer, parts, [WARM])


def train_behind_a_warmup(
    model: nn.Module, optimizer: torch.optim.Optimizer, whole: SequentialLR, steps: range
) -> list[float]:
    def after(loss: Tensor) -> None:
        whole._schedulers[1].report(loss)
        whole.step()

    return train(model, optimizer, SimpleNamespace(step=after), steps)


def test_behind_a_warmup_it_starts_from_the_model_as_it_then_is(policy: FrozenPolicy) -> None:
    whole = behind_a_warmup(policy)
    lrs = train_behind_a_warmup(*whole, range(STEPS))

    model, optimizer = small_job()
    warmup = LinearLR(optimizer, 0.1, total_iters=WARM)
    warm = SimpleNamespace(step=lambda loss: warmup.step())
    expected = train(model, optimizer, warm, range(WARM))
    alone = LearnedLR(optimizer, STEPS - WARM, policy)
    expected += train(model, optimizer, alone, range(WARM, STEPS))
    assert lrs == expected
    assert len(set(lrs)) > 2 * WARM
    assert whole[2]._schedulers[1].decisions == alone.decisions
    assert alone.controller.done


@pytest.mark.parametrize("stop", [5, WARM, 30])
def test_a_run_with_a_warmup_resumes_exactly(policy: FrozenPolicy, stop: int) -> None:
    model, optimizer, whole = behind_a_warmup(policy)
    lrs = train_behind_a_warmup(model, optimizer, whole, range(STEPS))

    parts = behind_a_warmup(policy)
    first = train_behind_a_warmup(*parts, range(stop))
    resumed = behind_a_warmup(policy)
    for part, new in zip(parts, resumed, strict=True):
        new.load_state_dict(part.state_dict())
    assert first + train_behind_a_warmup(*resumed, range(stop, STEPS)) == lrs
