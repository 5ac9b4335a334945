"""Expert schedules: pure functions of the optimizer step.

A new expert is one function and one line in ``EXPERTS``. All take the peak LR, so that
``EXPERTS[name](step, total_steps, peak)`` is the LR of optimizer step ``step`` (from 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lrenv.errors import InputError

WARMUP_FRACTION = 0.2
"""Share of the run in which the experts of the source warm up."""

POLYNOMIAL_POWER = 2.0

Expert = Callable[[int, int, float], float]


def constant(step: int, total_steps: int, peak: float) -> float:
    """Hold the peak for the whole run."""
    return peak


def linear_warmup(step: int, total_steps: int, peak: float) -> float:
    """Rise linearly for the first fifth of the run, then fall linearly to 0."""
    return peak * _rise_or(step, total_steps, lambda x: 1.0 - x)


def cosine(step: int, total_steps: int, peak: float) -> float:
    """Cosine annealing without warm-up (Loshchilov and Hutter 2017, equation 5)."""
    return peak * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))


def polynomial(step: int, total_steps: int, peak: float) -> float:
    """Rise linearly for the first fifth of the run, then fall as (1 − x)²."""
    return peak * _rise_or(step, total_steps, lambda x: (1.0 - x) ** POLYNOMIAL_POWER)


def wsd(step: int, total_steps: int, peak: float) -> float:
    """Warm up for 5 %, hold the peak, and fall as 1 − √x in the last fifth (Hägele et al. 2024)."""
    warmup, fall = max(1, round(0.05 * total_steps)), max(1, round(0.2 * total_steps))
    into_fall = (step - (total_steps - fall)) / fall
    return peak * min(1.0, (step + 1) / warmup, 1.0 - math.sqrt(max(0.0, into_fall)))


def _rise_or(step: int, total_steps: int, fall: Callable[[float], float]) -> float:
    warmup = max(1, round(WARMUP_FRACTION * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return fall((step - warmup) / max(1, total_steps - warmup))


EXPERTS: dict[str, Expert] = {
    "linear": linear_warmup,
    "cosine": cosine,
    "polynomial": polynomial,
    "wsd": wsd,
    "constant": constant,
}

TUNED_KINDS: tuple[str, ...] = ("linear", "cosine", "polynomial")
"""Experts among which the tuned expert is searched."""


def get_expert(name: str) -> Expert:
    """Return an expert by name, or raise :class:`InputError` with the names there are."""
    if name not in EXPERTS:
        raise InputError(f"Expected an expert among {', '.join(EXPERTS)}; got {name!r}.")
    return EXPERTS[name]


def schedule(name: str, total_steps: int, peak: float) -> list[float]:
    """Return the LR of every optimizer step of a run."""
    expert = get_expert(name)
    return [expert(step, total_steps, peak) for step in range(total_steps)]
