"""Checks of what hosts expect of a learning-rate scheduler: run them on your own.

```python
from lrenv.testing import check_scheduler

check_scheduler(lambda optimizer, total_steps: MyScheduler(optimizer, total_steps))
```
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode

Factory = Callable[[Optimizer, int], Any]
"""Makes a scheduler for an optimizer and a number of optimizer steps."""

STEPS = 40


def check_scheduler(factory: Factory) -> None:
    """Run all checks on the schedulers that a factory makes.

    Args:
        factory: Makes a scheduler for an optimizer and a number of optimizer steps.

    Raises:
        AssertionError: A check failed; its message names all that did, and why.
    """
    failed = {name: reason for name, reason in run_checks(factory).items() if reason}
    if failed:
        raise AssertionError("\n".join(f"{name}: {reason}" for name, reason in failed.items()))


def run_checks(factory: Factory) -> dict[str, str | None]:
    """Run all checks; returns why each of them failed, or None.

    Args:
        factory: Makes a scheduler for an optimizer and a number of optimizer steps.
    """
    results: dict[str, str | None] = {}
    if not __debug__:
        raise RuntimeError("Expected assertions, got python -O; run the checks without it.")
    for name, check in CHECKS.items():
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(factory)
            results[name] = None
        except Exception as error:  # whatever a scheduler raises is its answer
            results[name] = str(error).partition("\n")[0] or type(error).__name__
    return results


class _Job:
    """A small training run."""

    def __init__(
        self,
        factory: Factory,
        lrs: tuple[float | Tensor, ...] = (0.05,),
        kind: Callable[..., Optimizer] = SGD,
        total_steps: int = STEPS,
    ) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(4, 4) for _ in lrs), nn.Linear(4, 2))
        parts: list[list[nn.Parameter]] = [list(layer.parameters()) for layer in self.net]
        parts[0] += parts.pop()
        groups = [{"params": part, "lr": lr} for part, lr in zip(parts, lrs, strict=True)]
        self.optimizer = kind(groups)
        self.scheduler = factory(self.optimizer, total_steps)
        self.step = 0

    def backward(self) -> Tensor:
        """Compute gradients on the next batch."""
        generator = torch.Generator().manual_seed(self.step)
        x = torch.randn(8, 4, generator=generator)
        self.step += 1
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(x), (x.sum(1) > 0).long())
        loss.backward()
        return loss.detach()

    def train(self, steps: int, calls: int = 1) -> list[list[float]]:
        """Take optimizer steps; returns the LRs of the groups at each of them."""
        rows = []
        for _ in range(steps):
            loss = self.backward()
            rows.append([float(group["lr"]) for group in self.optimizer.param_groups])
            self.optimizer.step()
            for _ in range(calls):
                self.advance(loss)
        return rows

    def advance(self, loss: Tensor) -> None:
        """Step the scheduler, with a loss if it takes one."""
        try:
            with warnings.catch_warnings():
                # torch's take a number for an epoch, and warn of that.
                warnings.filterwarnings("error", message=".*epoch parameter.*")
                self.scheduler.step(loss)
        except (UserWarning, TypeError):
            self.scheduler.step()

    def weights(self) -> Tensor:
        """Return all parameters in one vector."""
        return nn.utils.parameters_to_vector(self.net.parameters()).detach()


def _is_a_scheduler(factory: Factory) -> None:
    scheduler = _Job(factory).scheduler
    assert isinstance(scheduler, LRScheduler), "expected a subclass of LRScheduler"


def _steps_without_a_metric(factory: Factory) -> None:
    job = _Job(factory)
    job.backward()
    job.optimizer.step()
    job.scheduler.step()


def _steps_with_a_metric(factory: Factory) -> None:
    job = _Job(factory)
    loss = job.backward()
    job.optimizer.step()
    warnings.simplefilter("error")
    job.scheduler.step(loss)


def _saves_plain_values(factory: Factory) -> None:
    job = _Job(factory)
    job.train(7)
    file = io.BytesIO()
    torch.save(job.scheduler.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def _resumes_exactly(factory: Factory) -> None:
    for stop in (1, 17):
        whole, resumed = _Job(factory, kind=AdamW), _Job(factory, kind=AdamW)
        whole.train(stop)
        for name in ("net", "optimizer", "scheduler"):
            state = copy.deepcopy(getattr(whole, name).state_dict())
            getattr(resumed, name).load_state_dict(state)
        resumed.step = whole.step
        left = STEPS - stop
        assert resumed.train(left) == whole.train(left), f"other LRs after a resume at step {stop}"
        assert torch.equal(resumed.weights(), whole.weights()), "other weights after a resume"


def _keeps_ratios(factory: Factory) -> None:
    for lrs in _Job(factory, (0.05, 0.005)).train(STEPS):
        assert abs(lrs[1] - lrs[0] / 10) <= 1e-6 * lrs[0], f"groups of 10 to 1 got LRs {lrs}"


def _schedules_added_groups(factory: Factory) -> None:
    job = _Job(factory)
    job.train(10)
    extra = nn.Parameter(torch.ones(3))
    job.optimizer.add_param_group({"params": [extra], "lr": 0.005})
    rows = job.train(STEPS - 10)
    changed = len({row[0] for row in rows}) > 1
    assert not changed or len({row[1] for row in rows}) > 1, "the LR of an added group never moves"


def _changes_tensors_in_place(factory: Factory) -> None:
    job = _Job(factory, (torch.tensor(0.05),))
    before = job.optimizer.param_groups[0]["lr"]
    job.train(STEPS)
    assert job.optimizer.param_groups[0]["lr"] is before, "another tensor as LR: steps recompile"


def _does_not_count_skipped_steps(factory: Factory) -> None:
    plain, skipping = _Job(factory), _Job(factory)
    expected = plain.train(7)
    rows = skipping.train(6)
    for _ in range(3):  # as after an overflow under automatic mixed precision
        skipping.advance(torch.tensor(0.7))
    rows += skipping.train(1)
    assert rows == expected, "steps that the optimizer did not take were counted"


def _counts_optimizer_steps(factory: Factory) -> None:
    once, often = _Job(factory), _Job(factory)
    expected, rows = once.train(STEPS // 2), often.train(STEPS // 2, calls=3)
    assert rows == expected, "calls were counted where optimizer steps should be"


def _survives_more_steps(factory: Factory) -> None:
    rows = _Job(factory).train(STEPS + 10)
    assert all(row[0] >= 0 for row in rows), "a negative LR behind the planned end"


def _tolerates_frozen_layers(factory: Factory) -> None:
    job = _Job(factory, (0.05, 0.05))
    job.net[0].requires_grad_(False)
    job.train(10)
    job.net[0].requires_grad_(True)
    job.train(10)


def _is_copied(factory: Factory) -> None:
    job = _Job(factory)
    job.train(10)
    copied = copy.deepcopy(job)
    assert copied.train(10) == job.train(10), "a deep copy goes another way"


def _rarely_waits(factory: Factory) -> None:
    job, waits = _Job(factory, total_steps=50 * STEPS), 0
    for _ in range(5 * STEPS):
        loss = job.backward()
        with _Reads() as reads:
            job.optimizer.step()
            job.advance(loss)
        waits += reads.count > 0
    assert waits <= STEPS, f"values read back in {waits} of {5 * STEPS} steps: a GPU would wait"


class _Reads(TorchDispatchMode):
    """Counts the values that are read back from tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


CHECKS: dict[str, Callable[[Factory], None]] = {
    "is an LRScheduler": _is_a_scheduler,
    "steps without a metric": _steps_without_a_metric,
    "steps with a metric": _steps_with_a_metric,
    "saves plain values": _saves_plain_values,
    "resumes exactly": _resumes_exactly,
    "keeps the ratios of groups": _keeps_ratios,
    "schedules added groups": _schedules_added_groups,
    "changes tensor LRs in place": _changes_tensors_in_place,
    "does not count skipped steps": _does_not_count_skipped_steps,
    "counts optimizer steps, not calls": _counts_optimizer_steps,
    "survives more steps than planned": _survives_more_steps,
    "tolerates frozen layers": _tolerates_frozen_layers,
    "can be copied": _is_copied,
    "does not wait at every step": _rarely_waits,
}
"""All checks by what they check; a new one is one function and one line here."""
