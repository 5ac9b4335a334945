"""LC's multipliers on the learned LR."""

from __future__ import annotations

import copy

import pytest
import torch
from jobs import STEPS, optimizer_steps, small_job, train
from torch import nn

from lrenv import InputError, LearnedLR
from lrenv.policies.frozen import FrozenPolicy


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


def test_groups_that_lc_splits_are_no_second_hand(policy: FrozenPolicy, recwarn) -> None:
    for added_at in range(20, 30):
        model, optimizer = small_job()
        scheduler = LearnedLR(optimizer, 60, policy, layerwise="lc")
        train(model, optimizer, scheduler, range(added_at))
        for lr in (0.1, 0.01):
            params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
            optimizer.add_param_group({"params": params, "lr": lr})
        train(model, optimizer, scheduler, range(added_at, 60))
    assert not [w for w in recwarn if "something else sets" in str(w.message)]


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
