"""Runs under ``LearnedLR`` that are short, change their length, or have none at first."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import STEPS, make_policy, optimizer_steps, scheduled, small_job, train

from lrenv import InputError, LearnedLR, load_policy
from lrenv.policies.frozen import FrozenPolicy


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
    assert runs[0] == runs[1]
    file = io.BytesIO()
    torch.save(job[2].state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["made_for"] == STEPS


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_a_trial_of_few_steps_goes_through(policy: FrozenPolicy, total_steps: int) -> None:
    with pytest.warns(UserWarning, match="at least 100 optimizer steps"):
        job = scheduled(policy, total_steps)
    assert len(set(train(*job, range(total_steps)))) == total_steps


def test_a_refused_length_changes_nothing(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy, None)
    train(model, optimizer, scheduler, range(100))
    with pytest.raises(InputError, match="at least 101"):
        scheduler.set_total_steps(50)
    train(model, optimizer, scheduler, range(100, 1100))

    assert not scheduler.controller.done


def test_a_run_that_is_finished_at_its_first_step_still_rises() -> None:
    model, optimizer, scheduler = scheduled(load_policy(), None)
    with pytest.raises(InputError, match="at least 4"):
        scheduler.finish(2)
    scheduler.finish(200)

    assert max(train(model, optimizer, scheduler, range(200))) > 1e-4


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


@pytest.mark.parametrize("steps", [0, -3, 1.5, "x", None, True])
def test_what_is_no_number_of_further_steps_is_refused(policy, steps):
    scheduler = scheduled(policy, None)[2]
    with pytest.raises(InputError, match="whole number of at least 1, got"):
        scheduler.finish(steps)


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("new", [None, 45, 90])
def test_the_length_may_change_behind_any_step(
    policy: FrozenPolicy, new: int | None, reported: bool
) -> None:
    for change_at in range(1, 40):
        model, optimizer, scheduler = scheduled(policy, 60)
        end = change_at + 5 if new is None else new
        for step in range(end):
            optimizer_steps(model, optimizer)
            if reported:
                scheduler.step(1.0)
            if step + 1 == change_at:
                scheduler.finish(5) if new is None else scheduler.set_total_steps(new)
            if not reported:
                scheduler.step(1.0)
        assert scheduler.controller.done
        assert scheduler.controller.step == end
