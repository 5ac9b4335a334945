"""The window: what happened in the last 512 optimizer steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrenv.statistics import StepStats

WINDOW = 512
"""Length of the window in optimizer steps."""


@dataclass(frozen=True)
class Interval:
    """What a run did between two decisions.

    Shape legend: r runs, n optimizer steps, l layers.

    Attributes:
        start: First optimizer step.
        total_steps: Length of the run in optimizer steps.
        losses: Training loss of each step, ``(r, n)``.
        lr: The learning rate of these steps, ``(r,)``.
        stats: Statistics of the measured steps, in order; the last steps of the interval.
        val_loss: Validation loss, ``(r,)``, or None if the job gives none.
    """

    start: int
    total_steps: int
    losses: Tensor
    lr: Tensor
    stats: Sequence[StepStats]
    val_loss: Tensor | None

    def to_state(self) -> dict[str, Any]:
        """Return the interval as tensors and plain values."""
        return {**vars(self), "stats": [dict(vars(s)) for s in self.stats]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Interval:
        """Read what :meth:`to_state` returned."""
        return cls(**{**state, "stats": [StepStats(**s) for s in state["stats"]]})

    @property
    def end(self) -> int:
        """The optimizer step behind the last one."""
        return self.start + self.losses.shape[1]

    @property
    def left(self) -> float:
        """Fraction of the run that is left after this interval."""
        return 1.0 - self.end / self.total_steps


class StepWindow:
    """The last ``WINDOW`` optimizer steps, one row each.

    Statistics of steps that were not measured hold the value measured last.

    Attributes:
        loss: Training losses, ``(r, n)`` with n ≤ ``WINDOW``.
        val_loss: Validation losses, ``(r, n)``; NaN where the job gives none.
        lr: Learning rates, ``(r, n)``.
        left: Fraction of the run left behind each step, ``(n,)``.
        grad_norm: Layer gradient norms, ``(r, n, l)``.
        lc: LC sensitivities of the layers, ``(r, n, l)``.
    """

    def __init__(self) -> None:
        self.loss = self.val_loss = self.lr = self.left = self.grad_norm = self.lc = torch.empty(0)
        self._empty = True

    def extend(self, interval: Interval) -> None:
        """Append the steps of an interval."""
        n_runs, n = interval.losses.shape
        val = interval.val_loss
        if val is None:
            val = interval.losses.new_full((n_runs,), torch.nan)
        steps = torch.arange(interval.start + 1, interval.end + 1, device=interval.losses.device)
        rows = {
            "loss": interval.losses,
            "val_loss": val[:, None].expand(-1, n),
            "lr": interval.lr[:, None].expand(-1, n),
            "left": 1.0 - steps / interval.total_steps,
            "grad_norm": _per_step([s.grad_norm for s in interval.stats], n),
            "lc": _per_step([s.lc for s in interval.stats], n),
        }
        for name, new in rows.items():
            time = 0 if name == "left" else 1
            old = getattr(self, name)
            recent = new.narrow(
                time, max(0, new.shape[time] - WINDOW), min(new.shape[time], WINDOW)
            )
            if new.ndim == 3 and not self._empty and old.shape[2] != new.shape[2]:
                # Other layers train than before: all of them get the mean of those.
                old = old.mean(2, keepdim=True).expand(-1, -1, new.shape[2])
            joined = recent if self._empty else torch.cat([old, recent], time)
            kept = min(joined.shape[time], WINDOW)
            # a copy, so that no more than the window stays in memory
            setattr(self, name, joined.narrow(time, joined.shape[time] - kept, kept).clone())
        self._empty = False

    def row(self, index: int) -> StepWindow:
        """Return the window of one run, sharing memory."""
        out = StepWindow()
        for name, value in vars(self).items():
            per_run = isinstance(value, Tensor) and name != "left"
            setattr(out, name, value[index : index + 1] if per_run else value)
        return out

    def state_dict(self) -> dict[str, object]:
        """Return the state as tensors and plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what :meth:`state_dict` returned."""
        vars(self).update(state)


def _per_step(values: list[Tensor], n: int) -> Tensor:
    """Spread measured values ``(r, l)`` over ``n`` steps, the last ones being the measured."""
    stacked = torch.stack(values, 1)
    if n == len(values):
        return stacked
    return torch.cat([stacked[:, :1].expand(-1, n - len(values), -1), stacked], 1)


def pad_left(series: Tensor, length: int = WINDOW) -> Tensor:
    """Pad a series ``(r, n, ...)`` in time to ``length`` steps with its first value."""
    missing = length - series.shape[1]
    if missing <= 0:
        return series
    return torch.cat([series[:, :1].expand(-1, missing, *series.shape[2:]), series], 1)
