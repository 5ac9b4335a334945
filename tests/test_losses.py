"""The losses that a job reports to ``LearnedLR``."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from jobs import STEPS, optimizer_steps, scheduled, small_job, train

from lrenv import InputError, LearnedLR
from lrenv.policies.frozen import FrozenPolicy


def test_steps_without_report_are_counted(policy: FrozenPolicy) -> None:
    model, optimizer = small_job()
    scheduler = LearnedLR(optimizer, STEPS, policy)
    with pytest.warns(UserWarning, match="Expected a training loss"):
        optimizer_steps(model, optimizer, 5)
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert scheduler.last_epoch == 5


def test_a_scheduler_is_pickled_and_takes_losses_of_inference_mode(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)
    train(model, optimizer, scheduler, range(5))
    with torch.inference_mode():
        loss = model(torch.ones(4, 6)).square().mean()
    scheduler.step(loss)
    again = pickle.loads(pickle.dumps(scheduler))
    assert again.get_last_lr() == scheduler.get_last_lr()


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


def test_the_loss_has_a_name_and_the_length_none(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy, None)
    optimizer_steps(model, optimizer)
    scheduler.step(loss=1.0)
    assert scheduler.controller.observer.window.loss.tolist() == [[1.0]]
    # accelerate would take it for OneCycleLR, and not step beyond
    assert not hasattr(scheduler, "total_steps")


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


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_loss_that_every_process_reports_counts_once(policy: FrozenPolicy, kind) -> None:
    model, optimizer, scheduler = scheduled(policy)
    for step in range(3):
        optimizer_steps(model, optimizer)
        loss = kind(1.5 + step)
        for _ in range(4):
            scheduler.step(loss)
    assert scheduler.controller.observer.window.loss.tolist() == [[1.5, 2.5, 3.5]]


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


def test_losses_below_zero_are_warned_of_once(policy: FrozenPolicy) -> None:
    model, optimizer, scheduler = scheduled(policy)

    def run() -> None:
        for _ in range(20):
            optimizer_steps(model, optimizer)
            scheduler.step(-1.0)

    with pytest.warns(UserWarning, match="at least 0, got one below") as caught:
        run()
    assert len(caught) == 1
    assert caught[0].filename == __file__
