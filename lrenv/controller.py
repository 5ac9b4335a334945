"""The one code path from optimizer steps to learning rates.

The environments and ``LearnedLR`` both drive a :class:`Controller`; they differ only in who runs
the optimizer step and who chooses the action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lrenv.action import (
    CLASSIC_RANGE,
    MAX_CHANGE,
    PROBE_LR,
    calibrate,
    classic_lr,
    relative_lr,
)
from lrenv.classic_observation import ClassicObserver
from lrenv.decisions import (
    MAX_DECISIONS,
    DecisionPlan,
    check_steps_per_epoch,
    check_total_steps,
    classic_plan,
    scale_free_plan,
)
from lrenv.errors import InputError
from lrenv.observation import ScaleFreeObserver, finite_mean
from lrenv.statistics import StepMeter, StepStats
from lrenv.traits import OptimizerTraits
from lrenv.window import Interval

Preset = Literal["scale-free", "classic"]
PRESETS: tuple[Preset, ...] = ("scale-free", "classic")
_PLAIN_STATE = (
    "step",
    "deciding",
    "lr",
    "_start_lr",
    "_found",
    "unfit",
    "calm",
    "_exploded",
    "_first_loss",
    "ceiling",
    "_index",
    "_losses",
)

EXPLODED = 3.0
"""A run has exploded when each of its last 8 losses is that many times the mean of its first 8."""

_JUDGED = 8
_ROUNDING = 1e-3


class Run(Protocol):
    """A job in training: what :func:`run_interval` needs of a trainee."""

    def parameters(self) -> Sequence[Tensor]:
        """Return the trained parameters, ``(r, ...)`` each."""

    def backward(self) -> Tensor:
        """Compute gradients on the next batch and return the losses, ``(r,)``."""

    def gradients(self) -> Sequence[Tensor]:
        """Return the gradients, of the parameters' shapes."""

    def update(self, lr: Tensor) -> None:
        """Take an optimizer step at learning rates ``(r,)``."""


@dataclass(frozen=True)
class Decision:
    """One decision, as the log keeps it.

    Attributes:
        step: The optimizer step at which it takes effect.
        action: The policy's action before clipping, ``(r,)``.
        lr: The learning rate that follows, ``(r,)``.
        guarded: Runs whose action the guard replaced, ``(r,)``.
        exploded: Those of them whose loss was finite, but too large, ``(r,)``.
        bounded: Others whose LR is not what the action asks for: it was out of [−1, 1], or the LR
            at its bounds or its ceiling, ``(r,)``.
    """

    step: int
    action: Tensor
    lr: Tensor
    guarded: Tensor
    exploded: Tensor
    bounded: Tensor


class Controller:
    """Turns measured steps into observations, and actions into learning rates.

    Per optimizer step: :meth:`before_update`, the step itself at :attr:`lr`, :meth:`after_update`,
    :meth:`end_step`. When that returns True an interval is complete: :meth:`close`, and where
    :attr:`deciding` holds, :meth:`act`.

    Args:
        total_steps: Length of the run in optimizer steps.
        traits: What is known of the optimizer.
        n_runs: Runs in lockstep.
        preset: ``"scale-free"`` or ``"classic"``.
        device: Where the runs live.
        steps_per_epoch: Optimizer steps in a pass over the training data, where that is known.
        average: Averages losses over the processes of a job.
        total: Sums over processes, where each of them has a shard of the parameters.
    """

    def __init__(
        self,
        total_steps: int,
        traits: OptimizerTraits,
        n_runs: int = 1,
        preset: Preset = "scale-free",
        device: torch.device | str = "cpu",
        steps_per_epoch: float | None = None,
        average: Callable[[Tensor], Tensor] = lambda losses: losses,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise InputError(f"Expected preset to be one of {PRESETS}, got {preset!r}.")
        per_epoch = check_steps_per_epoch(steps_per_epoch)
        self.preset = preset
        self.plan: DecisionPlan
        self.observer: ScaleFreeObserver | ClassicObserver
        if preset == "classic":
            self.plan, self.observer = classic_plan(total_steps), ClassicObserver()
        else:
            self.plan = scale_free_plan(total_steps)
            self.observer = ScaleFreeObserver(traits, steps_per_epoch=per_epoch)
        first = CLASSIC_RANGE[0] if preset == "classic" else PROBE_LR
        self.step = 0
        self.deciding = False
        self.memory: dict[str, Any] = {}
        """What the policy that decides for these runs remembers of them; not part of the state."""
        self.lr = torch.full((n_runs,), first, dtype=torch.float32, device=device)
        self._start_lr: Tensor | None = None
        self._found = torch.zeros(n_runs, dtype=torch.bool, device=device)
        self.unfit = self._exploded = torch.zeros_like(self._found)
        """Runs whose losses in the last interval were not finite, or exploded, ``(r,)``."""
        self.calm = ~self.unfit
        """Runs without any loss like that of late, ``(r,)``."""
        self._first_loss: Tensor | None = None
        self.ceiling: Tensor | None = None
        """Bound of all later LRs, ``(r,)``, or None."""
        self._index = 0
        self._meter, self._average = StepMeter(total, device), average
        self._losses: list[Tensor] = []
        self._stats: list[StepStats] = []

    @property
    def done(self) -> bool:
        """Whether the run is at its last step."""
        return self.step >= self.plan.total_steps

    @property
    def measuring(self) -> bool:
        """Whether the coming optimizer step is measured."""
        return not self.done and self.step >= self.plan.ends[self._index] - self.plan.measured

    def forget_layers(self) -> None:
        """Begin anew with what is measured of layers, as others of them train from now on."""
        self._meter.forget()
        self._stats = []
        if isinstance(self.observer, ScaleFreeObserver):
            self.observer.forget_layers()

    def stop_rising(self) -> None:
        """Let no later LR be above this one; nothing while it is only a probe."""
        if self._start_lr is not None:
            self.ceiling = self.lr.clone()

    def before_update(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Measure parameters and gradients ahead of the optimizer step, if it is measured."""
        if self.measuring:
            self._meter.before(self.step, params, grads)

    def after_update(self, params: Sequence[Tensor]) -> None:
        """Measure the parameters behind the optimizer step, if it is measured."""
        if self.measuring:
            self._stats.append(self._meter.after(params))

    def end_step(self, loss: Tensor) -> bool:
        """Count the optimizer step with its training losses ``(r,)``; True at an interval's end."""
        self._losses.append(loss)
        self.step += 1
        return self.step >= self.plan.ends[self._index]

    def close(self, val_loss: Tensor | None = None) -> None:
        """Complete the interval, with validation losses ``(r,)`` where the job has them."""
        start, _ = self.plan.interval(self._index)
        losses = self._average(torch.stack(self._losses, 1).to(self.lr))
        interval = Interval(start, self.plan.total_steps, losses, self.lr, self._stats, val_loss)
        self._losses, self._stats = [], []
        self._index += 1
        leading = self._index <= self.plan.lead
        if leading and self.preset == "scale-free":
            last = interval.stats[-1]
            self.lr, self._found = calibrate(
                self.lr, last.global_ratio, last.grad_norm.sum(1), self._found
            )
        if self._index == self.plan.lead:
            self._start_lr = self.lr
        self.observer.update(interval, self._start_lr)
        self._inspect(losses)
        self.deciding = not self.done and self._index >= self.plan.lead

    def act(self, action: Tensor) -> Decision:
        """Set the learning rates of the coming interval by the actions ``(r,)``.

        A run with a non-finite or exploded loss in its last interval gets the largest cut instead.
        """
        assert self._start_lr is not None
        action, before = action.to(self.lr), self.lr
        bounded = action.abs() > 1
        if self.preset == "classic":
            cut = (self.lr / 10).clamp_min(CLASSIC_RANGE[0])
            self.lr = torch.where(self.unfit, cut, classic_lr(action))
        else:
            guarded = torch.where(self.unfit, -torch.ones_like(action), action)
            self.lr = relative_lr(self.lr, guarded, self._start_lr)
            bounded |= (torch.log(self.lr / before) - MAX_CHANGE * action).abs() > _ROUNDING
        if self.ceiling is not None:
            bounded |= self.lr > self.ceiling
            self.lr = torch.minimum(self.lr, self.ceiling)
        self.deciding = False
        return Decision(
            self.step, action, self.lr, self.unfit, self._exploded, bounded & ~self.unfit
        )

    def _inspect(self, losses: Tensor) -> None:
        """Find the runs for the guard behind an interval with losses ``(r, n)``."""
        seen = self.observer.window.loss
        if self._first_loss is None and seen.shape[1] >= _JUDGED:
            self._first_loss = finite_mean(seen[:, :_JUDGED])
        elif self._first_loss is not None:  # of runs that had none until now
            unknown = self._first_loss.isnan()
            self._first_loss = torch.where(unknown, finite_mean(losses), self._first_loss)
        finite = losses.isfinite().all(1)
        self.calm = finite
        if self._first_loss is not None:
            high = seen[:, -_JUDGED:] > EXPLODED * self._first_loss[:, None]
            high &= self._first_loss[:, None] > 0
            self._exploded = finite & high.all(1)
            self.calm = finite & ~high.any(1)
        self.unfit = ~finite | self._exploded

    def replan(self, total_steps: int, in_flight: bool = False) -> None:
        """Change the length of the run between two steps, or behind one not yet counted.

        What is behind keeps its intervals, what is ahead gets those of a run of the new length; the
        scale-free observation becomes about what it would be in such a run.

        Args:
            total_steps: The new length in optimizer steps.
            in_flight: Whether a step has been taken for which :meth:`end_step` is still to come.
                It ends an interval only if it was to, as it may not have been measured.

        Raises:
            InputError: The run is past the new end.
        """
        taken = self.step + in_flight
        total_steps = check_total_steps(total_steps, taken + 1)
        classic = isinstance(self.observer, ClassicObserver)
        new = classic_plan(total_steps) if classic else scale_free_plan(total_steps)
        ahead = tuple(end for end in new.ends if end > taken)
        behind = tuple(end for end in self.plan.ends if end <= taken)
        if isinstance(self.observer, ScaleFreeObserver):
            to_come = len(behind) - self._index + len(ahead)
            self.observer.rescale(self.plan.total_steps, total_steps, MAX_DECISIONS - to_come)
        self.memory = {}
        self.plan = replace(new, ends=behind + ahead)

    def state_dict(self) -> dict[str, Any]:
        """Return the state at any step as tensors and plain values."""
        plain = {name: getattr(self, name) for name in _PLAIN_STATE}
        # one tensor, as there may be one loss a step of a long interval
        plain["_losses"] = torch.stack(self._losses) if self._losses else []
        return {
            **plain,
            "total_steps": self.plan.total_steps,
            "ends": list(self.plan.ends),
            "stats": [dict(vars(s)) for s in self._stats],
            "meter": self._meter.state_dict(),
            "observer": self.observer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, with the length of its run."""
        state = _moved(state, self.lr.device)
        self.plan = replace(self.plan, total_steps=state["total_steps"], ends=tuple(state["ends"]))
        self.memory = {}
        for name in _PLAIN_STATE:
            setattr(self, name, state[name])
        self._losses = list(state["_losses"])
        self._stats = [StepStats(**s) for s in state["stats"]]
        self._meter.load_state_dict(state["meter"])
        self.observer.load_state_dict(state["observer"])


def _moved(state: Any, device: torch.device) -> Any:
    """Move all tensors of a nested state to a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _moved(value, device) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_moved(value, device) for value in state)
    return state


def run_interval(run: Run, controller: Controller) -> None:
    """Train up to the end of the current interval; the caller closes it."""
    while True:
        loss = run.backward()
        controller.before_update(run.parameters(), run.gradients())
        run.update(controller.lr)
        controller.after_update(run.parameters())
        if controller.end_step(loss):
            return
