"""The checks of schedulers: ours passes all of them, broken ones fail by name."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from lrenv import LearnedLR, load_policy
from lrenv.testing import CHECKS, check_scheduler, run_checks


def test_learned_lr_passes_all_checks():
    policy = load_policy()
    check_scheduler(lambda optimizer, total_steps: LearnedLR(optimizer, total_steps, policy))


class _Broken(LRScheduler):
    """Halves the first group's LR by a new tensor, forgets its count, and waits for the loss."""

    def __init__(self, optimizer):
        self.count = 0
        super().__init__(optimizer)

    def step(self, metrics):
        float(metrics)
        self.count += 1
        group = self.optimizer.param_groups[0]
        group["lr"] = group["lr"] * 0.5 ** (self.count / 10)

    def state_dict(self):
        return {"optimizer": self.optimizer, "count": object()}

    def load_state_dict(self, state):
        self.count = 0

    def _initial_step(self):
        pass


def test_a_broken_scheduler_is_told_what_is_wrong():
    results = run_checks(lambda optimizer, total_steps: _Broken(optimizer))

    failed = {name for name, reason in results.items() if reason}
    assert failed == {
        "steps without a metric",
        "saves plain values",
        "resumes exactly",
        "keeps the ratios of groups",
        "schedules added groups",
        "changes tensor LRs in place",
        "does not count skipped steps",
        "counts optimizer steps, not calls",
        "does not wait at every step",
    }
    assert "other LRs after a resume at step 1" in results["resumes exactly"]


def test_all_failures_stand_in_the_error():
    with pytest.raises(AssertionError) as error:
        check_scheduler(lambda optimizer, total_steps: CosineAnnealingLR(optimizer, total_steps))

    assert "counts optimizer steps, not calls: calls were counted" in str(error.value)
    assert "does not count skipped steps: steps that the optimizer did not take" in str(error.value)
    assert len(CHECKS) == 14
    assert torch.is_grad_enabled()
