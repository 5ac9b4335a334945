"""GeN and Hi-DLR: learning rates from the curvature of the loss along the update.

Sources: "Automatic gradient descent with generalized Newton's method" (GeN, arXiv 2407.02772) and
"A Hessian-informed differential learning rate" (Hi-DLR, arXiv 2501.06954).

Shape legend: j probes, k groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrenv import processes
from lrenv.adaptive.within_step import WithinStep
from lrenv.errors import InputError
from lrenv.hooks import listen, set_lr
from lrenv.rollback import Buffers, same_modes_and_random_numbers

KEEP = 0.9
"""Share of the old LR in the new one (GeN, algorithm 1)."""

LARGEST_CHANGE = 2.0
"""Bound of one estimate's factor on the LR."""

INTERVAL = 20
"""Optimizer steps between two estimates by default."""

LEAST_R2 = 0.9
"""Adjusted R² that the fit must have, or the LRs stay."""

LEAST_PROBES = 8
"""Random probes at least: with fewer, noise alone passes the gate one time in twenty."""


class HiDLR(WithinStep):
    """Sets each parameter group's LR to the minimum of a quadratic fitted to the loss.

    Every ``interval`` optimizer steps the loss of the same batch is taken at 4 probes a group (8 at
    least), w − Σ ξ_k·u_k, where u_k is the update that group k has just made. Least squares give
    the slope and curvature of the loss along each u_k, and with them the best LR of each group
    (Hi-DLR, equation 5). Groups are the optimizer's own, see
    :func:`lrenv.adaptive.group_parameters`. What it really does: it follows the best LR for the
    *next* step on *this* batch, which is known to be too greedy on noisy batches, and knows nothing
    of the steps that are left. The sources estimate
    every 4 to 8 steps; every 20 costs less and does better (benchmarks/gen_interval.py).

    A probe costs a forward pass. At these steps alone the parameters exist three times.

    ```python
    groups = [{"params": params} for params in group_parameters(model).values()]
    optimizer = torch.optim.AdamW(groups)
    scheduler = HiDLR(optimizer, model, lambda: loss_function(model(x), y))
    for x, y in batches:  # the x and y that the lambda reads
        optimizer.zero_grad()
        loss_function(model(x), y).backward()
        optimizer.step()  # all is done within
        scheduler.step()  # for hosts; does nothing
    ```

    Args:
        optimizer: Any torch optimizer; its LRs are where the search starts.
        model: The model. Its dropout is off in probes, and its buffers, such as the averages of
            batch norm, and torch's random state are brought back.
        loss: Computes the loss of the current batch, a scalar, without a backward pass. It is
            called within ``optimizer.step()``.
        interval: Optimizer steps between two estimates.
        axis: Probe one group at a time, at ξ of −1, −½, ½ and 1, instead of all at random.
        seed: Seed of random probes.

    Attributes:
        influence: Per-parameter influence of each group, b²/(a·n) with slope b, curvature a and n
            parameters, at the last estimate; 0 where there is none.
        r2: Adjusted R² of the last fit.

    Raises:
        InputError: A setting cannot be used.
    """

    state = ("influence", "r2", "random", "_taken")

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        loss: Callable[[], Tensor],
        interval: int = INTERVAL,
        axis: bool = False,
        seed: int = 0,
    ) -> None:
        if interval < 1:
            raise InputError(f"Expected an interval of at least 1, got {interval}; raise it.")
        self.interval, self.axis = interval, axis
        self.influence = [0.0] * len(optimizer.param_groups)
        self.r2 = 0.0
        self._model, self._loss = model, loss
        self._generator = torch.Generator().manual_seed(seed)
        self._taken = 0
        self._before: list[list[Tensor]] = []
        super().__init__(optimizer)
        listen(optimizer, self)

    def before_step(self, loss: Any = None) -> None:
        """Keep the parameters where an estimate is due."""
        self.influence += [0.0] * (len(self.optimizer.param_groups) - len(self.influence))
        if self._taken % self.interval == 0:
            self._before = [[p.detach().clone() for p in params] for params in self._params()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Estimate where it is due, and set the LRs."""
        self._taken += 1
        if not self._before:
            return
        probes = self._draw(len(self._before))
        try:
            with _undisturbed(self._model):
                losses = self._losses_at(probes)
        finally:
            self._before = []
        fit = fit_quadratic(probes, losses[1:] - losses[0])
        self.r2 = fit.r2
        if fit.r2 >= LEAST_R2:
            self._use(fit)

    def _use(self, fit: QuadraticFit) -> None:
        for k, groups in enumerate(self._fitted_groups()):
            slope, curvature = fit.slope[k].item(), fit.curvature[k].item()
            if not (slope > 0 and curvature > 0):
                continue
            size = sum(p.numel() for group in groups for p in group["params"])
            # In units of the update these are b·η and a·η², so that η cancels.
            self.influence[k] = slope**2 / (curvature * max(1, size))
            for group in groups:
                lr = float(group["lr"])
                factor = min(max(slope / curvature, 1 / LARGEST_CHANGE), LARGEST_CHANGE)
                set_lr(group, KEEP * lr + (1 - KEEP) * lr * factor)
        self._last_lr = self.get_lr()

    @property
    def random(self) -> Tensor:
        """State of the probes' random numbers."""
        return self._generator.get_state()

    @random.setter
    def random(self, state: Tensor) -> None:
        self._generator.set_state(state)

    def _fitted_groups(self) -> list[list[dict[str, Any]]]:
        """The parameter groups that share an LR."""
        return [[group] for group in self.optimizer.param_groups]

    def _params(self) -> list[list[Tensor]]:
        return [
            [p for group in groups for p in group["params"]] for groups in self._fitted_groups()
        ]

    def _draw(self, n_groups: int) -> Tensor:
        """Probes ξ, ``(j, k)``."""
        if self.axis:
            steps = torch.tensor([-1.0, -0.5, 0.5, 1.0])
            return torch.cat([torch.diag(torch.full((n_groups,), s)) for s in steps.tolist()])
        shape = (max(LEAST_PROBES, 4 * n_groups), n_groups)
        signs = torch.randint(2, shape, generator=self._generator) * 2.0 - 1.0
        return signs * (0.5 + 0.5 * torch.rand(shape, generator=self._generator))

    def _losses_at(self, probes: Tensor) -> Tensor:
        """Losses at the parameters before the update, then at each probe; ``(1 + j,)``."""
        after = [[p.detach().clone() for p in params] for params in self._params()]
        found = []
        try:
            for row in [torch.zeros(probes.shape[1]), *probes]:
                self._move(after, row.tolist())
                found.append(self._loss().detach().double().reshape(()))
        finally:
            self._move(after, [1.0] * probes.shape[1])
        return processes.mean(torch.stack(found)).cpu()

    def _move(self, after: list[list[Tensor]], shares: list[float]) -> None:
        """Take each group a share of the way from before the update to behind it."""
        for xi, params, old, new in zip(shares, self._params(), self._before, after, strict=True):
            for param, start, end in zip(params, old, new, strict=True):
                param.copy_(end if xi == 1.0 else torch.lerp(start, end, xi))


class GeNLR(HiDLR):
    """GeN: one LR for all groups, from the loss at three points along the update.

    η* = (η/2)·(L₊ − L₋)/(L₊ − 2L₀ + L₋), where L₋ is the loss behind the update at LR η, L₊ that
    of a step backwards, and L₀ that before; groups keep their ratios. With three points the
    quadratic is exact, so there is no R² to gate on. See :class:`HiDLR` for what it really does.

    Args:
        optimizer: Any torch optimizer; its LRs are where the search starts.
        model: The model.
        loss: Computes the loss of the current batch, a scalar, without a backward pass.
        interval: Optimizer steps between two estimates.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        loss: Callable[[], Tensor],
        interval: int = INTERVAL,
    ) -> None:
        super().__init__(optimizer, model, loss, interval)

    def _fitted_groups(self) -> list[list[dict[str, Any]]]:
        return [self.optimizer.param_groups]

    def _draw(self, n_groups: int) -> Tensor:
        return torch.tensor([[-1.0], [1.0]])


@dataclass(frozen=True)
class QuadraticFit:
    """L(ξ) − L(0) = Σ ½·A_k·ξ_k² − B_k·ξ_k.

    Attributes:
        curvature: A, ``(k,)``.
        slope: B, ``(k,)``.
        r2: Adjusted R²; 1 where there is one probe a number, 0 where losses are not finite.
    """

    curvature: Tensor
    slope: Tensor
    r2: float


def fit_quadratic(probes: Tensor, changes: Tensor) -> QuadraticFit:
    """Fit curvature and slope of each group by least squares (Hi-DLR, equation 4).

    Args:
        probes: ξ of each probe, ``(j, k)`` with j ≥ 2k.
        changes: Loss at each probe less that at ξ = 0, ``(j,)``.
    """
    n_groups, changes = probes.shape[1], changes.double()
    nothing = torch.zeros(n_groups, dtype=torch.float64)
    if not changes.isfinite().all():
        return QuadraticFit(nothing, nothing, 0.0)
    xi = probes.double()
    design = torch.cat([0.5 * xi.square(), -xi], 1)
    solution = torch.linalg.lstsq(design, changes[:, None]).solution[:, 0]
    residual = (changes - design @ solution).square().sum()
    total = (changes - changes.mean()).square().sum()
    spare = len(changes) - 2 * n_groups
    left = float(residual / total) * len(changes) / max(1, spare) if total > 0 else 1.0
    r2 = 1.0 - left if spare else 1.0
    return QuadraticFit(solution[:n_groups], solution[n_groups:], r2)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Dropout off, batch norm on the batch; buffers and random states come back bit for bit."""
    buffers = Buffers(model)
    with same_modes_and_random_numbers(model):
        for module in model.modules():
            reads_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = module.training and reads_batch
        try:
            yield
        finally:
            buffers.restore()
