"""When decisions fall in a run, which steps are measured for them, and when a run is validated."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from dataclasses import dataclass
from numbers import Real

from lrenv.errors import InputError

MAX_DECISIONS = 80
"""Decisions of the scale-free preset in one run of any length, at most."""

CALIBRATION_STEPS = 3
"""Optimizer steps at the start of a run in which the unit of the LR is found."""

MEASURED_STEPS = 4
"""Last optimizer steps of a decision interval whose gradients are read, at most."""

CLASSIC_INTERVAL = 20
"""Optimizer steps between two decisions of the classic preset."""


@dataclass(frozen=True)
class DecisionPlan:
    """Cuts a run into intervals; a decision sets the LR at the start of each but the first ones.

    Attributes:
        total_steps: Length of the run in optimizer steps.
        ends: Optimizer steps at which the intervals end, rising, the last one ``total_steps``.
        lead: Number of one-step intervals at the start that come before the first decision.
        measured: Optimizer steps measured at the end of an interval, at most.
    """

    total_steps: int
    ends: tuple[int, ...]
    lead: int
    measured: int

    @property
    def n_decisions(self) -> int:
        """Number of decisions in the run."""
        return len(self.ends) - self.lead

    def next_end(self, step: int) -> int:
        """Return the end of the interval in which optimizer step ``step`` lies."""
        return self.ends[bisect_right(self.ends, step)]

    def interval(self, index: int) -> tuple[int, int]:
        """Return the first optimizer step of interval ``index`` and the one behind its last."""
        return (self.ends[index - 1] if index else 0), self.ends[index]


def equal_steps(total_steps: int, n: int) -> list[int]:
    """Numbers of the steps behind which ``n`` validation losses are taken, fewer in short runs.

    They cut the run into equal parts; the last is its end.
    """
    return sorted({-(-total_steps * k // n) for k in range(1, n + 1)})


def check_total_steps(total_steps: int, least: int) -> int:
    """Return ``total_steps``, or raise :class:`InputError` if it is below ``least``."""
    try:
        steps = -1 if isinstance(total_steps, bool) else operator.index(total_steps)
    except TypeError:
        steps = -1
    if steps < least:
        raise InputError(
            f"Expected total_steps to be a whole number of at least {least} optimizer steps, "
            f"got {total_steps!r}; pass the number of optimizer steps of the whole run."
        )
    return steps


def trial_steps(total_steps: int) -> int:
    """The length to plan for: trials of one to three steps end ahead of theirs."""
    return max(check_total_steps(total_steps, 1), CALIBRATION_STEPS + 1)


def check_steps_per_epoch(steps: float | None) -> float | None:
    """Return optimizer steps in an epoch, or raise :class:`InputError` if they are not positive."""
    number = isinstance(steps, Real) and not isinstance(steps, bool)
    if steps is not None and not (number and 0 < steps < math.inf):
        raise InputError(
            f"Expected steps_per_epoch to be a positive number of optimizer steps, got {steps!r}; "
            "pass len(loader), less where batches are accumulated, or None."
        )
    return None if steps is None else float(steps)


def scale_free_plan(total_steps: int) -> DecisionPlan:
    """Place up to ``MAX_DECISIONS`` decisions quadratically: close together at the start.

    Decision i of n falls at the fraction (i/n)² of the run, with at least one step between two.
    """
    total_steps = check_total_steps(total_steps, CALIBRATION_STEPS + 1)
    rest = total_steps - CALIBRATION_STEPS
    ends = set(range(1, CALIBRATION_STEPS + 1))
    for i in range(1, MAX_DECISIONS + 1):
        ends.add(CALIBRATION_STEPS + -(-rest * i * i // MAX_DECISIONS**2))
    return DecisionPlan(total_steps, tuple(sorted(ends)), CALIBRATION_STEPS, MEASURED_STEPS)


def classic_plan(total_steps: int) -> DecisionPlan:
    """One decision every ``CLASSIC_INTERVAL`` optimizer steps, every step measured."""
    total_steps = check_total_steps(total_steps, 2)
    ends = (1, *range(1 + CLASSIC_INTERVAL, total_steps, CLASSIC_INTERVAL), total_steps)
    return DecisionPlan(total_steps, ends, 1, CLASSIC_INTERVAL)
