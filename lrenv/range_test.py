"""The LR range test: which learning rates a job can be trained at, before it is trained.

Sources: Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (section 3.3), for the
exponential sweep; LRBench (TIST 2023) for the grid of fixed LRs and the range within a share of the
best. Everything is as it was afterwards: model, optimizer, torch's random numbers, modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrenv.errors import InputError
from lrenv.hooks import parameters_of, set_lr, silenced
from lrenv.rollback import RandomNumbers, Snapshot, same_modes_and_random_numbers

BELOW_BEST = 5.5
"""The suggestion of a sweep is that much below the LR of the lowest loss: the median factor to the
tuned peak on training tasks, see benchmarks/range_test.py."""

ABOVE_GRID = 1.3
"""The suggestion of a grid is that much above the lowest point of its losses, likewise, as far as
the LRs train; a whole run takes a little more than a short one."""

ABOVE_VALIDATED = 1.9
"""The same for a grid that is judged by a validation loss, whose runs are longer."""

GRID_STEPS, VALIDATED_STEPS = 50, 100
"""Optimizer steps of each run of a grid, without and with a validation loss, at which these hold; a
sweep has as many as the latter. Without a validation loss, longer runs suggest worse: they learn
few examples by heart."""

_SMOOTHING = 0.9
_DIVERGED = 4.0
_WITHIN = 0.1

Loss = Callable[[nn.Module, Any], Tensor]
"""From the model and a batch to its mean loss, a scalar."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
        lrs: Learning rates, rising; those behind a divergence are missing.
        losses: The loss that each was judged by: smoothed in a sweep; in a grid the validation
            loss behind its steps or, without one, the mean over the last quarter of them.
        best: The LR of the lowest loss.
        low: The lowest LR of the range around it whose losses are within ten percent of the fall
            from the first loss to the best.
        high: The highest LR of that range.
        suggestion: A peak LR to start from.
        reason: Why that one.
        stopped: Why the test ended early, None if it did not.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    low: float
    high: float
    suggestion: float
    reason: str
    stopped: str | None

    def __str__(self) -> str:
        """The suggestion and why."""
        stopped = f" Stopped early: {self.stopped}." if self.stopped else ""
        return (
            f"Suggested peak LR: {self.suggestion:.2g} ({self.reason}). Lowest losses at LRs "
            f"from {self.low:.2g} to {self.high:.2g}.{stopped}"
        )


def range_test(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    validation: Iterable[Any] | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    mode: Literal["sweep", "grid"] = "grid",
    steps: int | None = None,
    points: int = 15,
    accumulate: int = 1,
    precision: torch.dtype | None = None,
) -> RangeTest:
    """Try learning rates on a model and its optimizer, and bring both back bit for bit.

    Schedulers of this package that the optimizer has already are not told of it. Use it as in
    ``peak = range_test(...).suggestion``.

    Args:
        model: The model.
        optimizer: Its optimizer; groups keep the ratios of their LRs, the first is the unit.
        batches: Batches, such as a DataLoader; they start again where they end.
        loss: The loss of a batch, ``loss(model, batch)``; by default that of models that return
            one, as Hugging Face's do on a batch that is a mapping, and cross-entropy on one of
            inputs and labels.
        validation: Batches that a grid is judged by, a few hundred examples: worth having where a
            run passes over its data many times, and closer elsewhere too.
        low: The lowest LR.
        high: The highest LR.
        mode: ``"grid"``: a short run at each of several fixed LRs, all from the same start and on
            the same batches; ``"sweep"``: one run whose LR rises exponentially, which costs less
            and says less.
        steps: Optimizer steps of the sweep, or of each run of the grid; if None, 100, and 50 in a
            grid without validation.
        points: LRs of the grid.
        accumulate: Batches an optimizer step.
        precision: Autocast to that type; float16 scales the gradients too.

    Raises:
        InputError: A setting cannot be used, there are no batches, or no LR trains the model.
    """
    _check_trainee(model, optimizer)
    _check_kinds(mode, loss, validation)
    if steps is None:
        short = mode == "grid" and validation is None
        steps = GRID_STEPS if short else VALIDATED_STEPS
    _check(low, high, steps, points, accumulate)
    n = steps if mode == "sweep" else points
    lrs = [low * (high / low) ** (k / (n - 1)) for k in range(n)]
    job = _Job(model, optimizer, batches, loss or model_loss, accumulate, precision)
    with _restored(model, optimizer, batches, validation):
        if mode == "sweep":
            return _judge(lrs, *_sweep(job, lrs))
        found = _grid(job, lrs, steps, validation)
        return _judge(lrs, *found, ABOVE_GRID if validation is None else ABOVE_VALIDATED)


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns on a mapping, or cross-entropy on inputs and labels.

    Raises:
        InputError: The batch is neither, or the model returns no loss.
    """
    if isinstance(batch, Mapping):
        value = getattr(model(**batch), "loss", None)
        if isinstance(value, Tensor):
            return value
    elif isinstance(batch, (list, tuple)) and len(batch) == 2 and _are_labels(batch[1]):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
    raise InputError(
        "Expected a model that returns a loss on a mapping, or a batch of inputs and whole-number "
        f"labels, got a {type(batch).__name__}; pass loss=, a function of model and batch, such as "
        "lambda model, batch: mse_loss(model(batch[0]), batch[1])."
    )


def _are_labels(y: Any) -> bool:
    return isinstance(y, Tensor) and not y.is_floating_point()


class _Job:
    """Takes optimizer steps at given LRs."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Iterable[Any],
        loss: Loss,
        accumulate: int,
        precision: torch.dtype | None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._batches, self._loss, self._accumulate = batches, loss, accumulate
        self._precision = precision
        self._device = next(model.parameters()).device
        unit = float(optimizer.param_groups[0]["lr"]) or 1.0
        self._random = RandomNumbers(model, batches)
        self._ratios = [float(group["lr"]) / unit for group in optimizer.param_groups]
        self.restart()

    def restart(self) -> None:
        """Begin again with the first batch, and the same random numbers."""
        self._random.restore()
        self._stream = _endless(self._batches)
        half = self._precision == torch.float16
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=half)

    def step(self, lr: float) -> float:
        """Take an optimizer step; returns its loss."""
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            set_lr(group, lr * ratio)
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self._accumulate):
            loss = self._loss_of(self._next())
            self._scaler.scale(loss / self._accumulate).backward()
            total += loss.item() / self._accumulate
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return total

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> float:
        """Mean loss of the batches."""
        self.model.eval()
        losses = [self._loss_of(_to(batch, self._device)).item() for batch in batches]
        if not losses:
            raise InputError("Expected at least one batch of validation, got none; pass a list.")
        return sum(losses) / len(losses)

    def _loss_of(self, batch: Any) -> Tensor:
        with torch.autocast(
            self._device.type, self._precision, enabled=self._precision is not None
        ):
            return self._loss(self.model, batch)

    def _next(self) -> Any:
        try:
            return _to(next(self._stream), self._device)
        except StopIteration:
            raise InputError(
                "Expected at least one batch, got none; pass a list or a DataLoader, which can "
                "start again, not a generator."
            ) from None


def _sweep(job: _Job, lrs: list[float]) -> tuple[list[float], str | None]:
    losses: list[float] = []
    mean = 0.0
    job.model.train()
    for k, lr in enumerate(lrs):
        value = job.step(lr)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        smooth = mean / (1 - _SMOOTHING ** (k + 1))
        if not math.isfinite(value) or (losses and smooth > _DIVERGED * min(losses)):
            return losses, f"the loss diverged at an LR of {lr:.2g}"
        losses.append(smooth)
    return losses, None


def _grid(
    job: _Job, lrs: list[float], steps: int, validation: Iterable[Any] | None
) -> tuple[list[float], str | None]:
    start = Snapshot(job.model, job.optimizer)
    losses: list[float] = []
    for lr in lrs:
        start.restore(job.optimizer)
        job.restart()
        job.model.train()
        values = []
        for _ in range(steps):
            values.append(job.step(lr))
            if not math.isfinite(values[-1]) or values[-1] > _DIVERGED * max(values[0], 1e-12):
                return losses, f"the loss diverged at an LR of {lr:.2g}"
        behind = values[3 * steps // 4 :]
        value = sum(behind) / len(behind) if validation is None else job.validate(validation)
        if not math.isfinite(value):
            return losses, f"the validation loss was not finite at an LR of {lr:.2g}"
        losses.append(value)
    return losses, None


def _judge(
    lrs: list[float], losses: list[float], stopped: str | None, above: float | None = None
) -> RangeTest:
    """What losses say; ``above`` is how far above its lowest point a grid suggests."""
    if not losses or min(losses) >= losses[0]:
        raise InputError(
            f"Expected LRs from {lrs[0]:.2g} to {lrs[-1]:.2g} to lower the loss, none did"
            f"{f' ({stopped})' if stopped else ''}; lower low, or check the loss."
        )
    best = min(range(len(losses)), key=losses.__getitem__)
    bound = losses[best] + _WITHIN * (losses[0] - losses[best])
    first = last = best
    while first > 0 and losses[first - 1] <= bound:
        first -= 1
    while last + 1 < len(losses) and losses[last + 1] <= bound:
        last += 1
    suggestion = _suggest(lrs, losses, best, above)
    found = tuple(lrs[: len(losses)]), tuple(losses)
    return RangeTest(*found, lrs[best], lrs[first], lrs[last], *suggestion, stopped)


def _suggest(
    lrs: list[float], losses: list[float], best: int, above: float | None
) -> tuple[float, str]:
    """A peak LR, and why that one."""
    if above is None:
        return lrs[best] / BELOW_BEST, (
            f"a sweep's loss still falls by the LRs before: {BELOW_BEST:g} times below the LR of "
            "its lowest loss is the usual distance to the best peak"
        )
    if not 0 < best < len(losses) - 1:
        return lrs[best], "the LR whose short run ended lowest, at the edge of those that trained"
    before, least, behind = losses[best - 1 : best + 2]
    shift = 0.5 * (before - behind) / (before - 2 * least + behind)
    lr = lrs[best] * (lrs[1] / lrs[0]) ** shift * above
    most = lrs[len(losses) - 1]
    return min(lr, most), (
        f"{above:g} times, the usual distance to the best peak, the lowest point of a "
        "parabola through the LR whose short run ended lowest and those beside it"
        + (f", but no more than {most:.2g}, the highest LR that trained" if lr > most else "")
    )


@contextmanager
def _restored(model: nn.Module, optimizer: Optimizer, *loaders: Any) -> Iterator[None]:
    """Bring everything back that training changes, also after an exception."""
    saved = Snapshot(model, optimizer)
    params = dict.fromkeys([*model.parameters(), *parameters_of(optimizer)])
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in params]
    with same_modes_and_random_numbers(model, *loaders), silenced(optimizer):
        try:
            yield
        finally:
            saved.restore(optimizer)
            for param, grad in grads:
                param.grad = grad


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Go through batches again and again; ends at once where there are none."""
    seen = True
    while seen:
        seen = False
        for batch in batches:
            seen = True
            yield batch


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        items = [_to(value, device) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _check_trainee(model: object, optimizer: object) -> None:
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        got = f"a {type(model).__name__} and a {type(optimizer).__name__}"
        raise InputError(f"Expected a model and its optimizer, got {got}.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("Expected an optimizer that steps without a closure, got LBFGS.")


def _check_kinds(mode: str, loss: object, validation: object) -> None:
    if mode not in ("sweep", "grid"):
        raise InputError(f"Expected the mode sweep or grid, got {mode!r}.")
    if loss is not None and (isinstance(loss, nn.Module) or not callable(loss)):
        raise InputError(f"Expected loss to be a function of model and batch, got {loss!r}.")
    if validation is not None and mode == "sweep":
        raise InputError("Expected validation with the mode grid alone, got sweep; leave it out.")


def _check(low: float, high: float, steps: int, points: int, accumulate: int) -> None:
    if not (0 < low < high and math.isfinite(high)):
        raise InputError(f"Expected 0 < low < high, got {low} and {high}; name a range of LRs.")
    for name, value, least in (
        ("steps", steps, 5),
        ("points", points, 3),
        ("accumulate", accumulate, 1),
    ):
        if value < least:
            raise InputError(f"Expected {name} of at least {least}, got {value}; raise it.")
