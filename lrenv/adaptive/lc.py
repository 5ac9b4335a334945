"""LC: learning rates of tensors by their sensitivity, the level of convergence.

Source: "Level of Convergence", which estimates LC_p = L(p) − L(p*) ≈ g²/(2h) for each parameter p
with gradient g and second derivative h, and gives sensitive tensors small LRs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrenv.adaptive.within_step import WithinStep
from lrenv.errors import InputError
from lrenv.gradients import dense, widened
from lrenv.hooks import listen, set_lr, split_groups
from lrenv.statistics import lc_bound, lc_nuclear

MULTIPLIERS = (5.0, 3.0, 1.0, 0.6, 0.2)
"""Of the LR, from the least to the most sensitive fifth of the tensors."""

Form = Literal["nuclear", "frobenius", "curvature"]
_TINY = 1e-30


class LCSensitivityLR(WithinStep):
    """Multiplies each tensor's LR by how insensitive the tensor is.

    Behind every backward pass the tensors that have a gradient are sorted by sensitivity and cut at
    the quantiles 0.2, 0.4, 0.6 and 0.8; the fifths get 5, 3, 1, 0.6 and 0.2 times the LR. As the
    mean of these is 1.96, the original's advantage over a constant LR is in part a doubled LR;
    ``normalize`` takes that away.

    The optimizer gets one parameter group a tensor. For the time of its step each group's LR is the
    one that is set, by whatever other scheduler there is, times the multiplier; so LC composes
    with any schedule, :class:`lrenv.LearnedLR` included, which must be made after it. It acts as
    long as the job keeps it.

    Args:
        optimizer: Any torch optimizer.
        normalize: Divide the multipliers by their mean over the tensors that train.
        form: How a tensor's sensitivity is estimated from its parameters θ and gradient g:
            ``"nuclear"``, the original: the nuclear norm of (θ ⊙ g)², by a singular value
            decomposition, which costs far more than a step where matrices are large;
            ``"frobenius"``: its lower bound ‖(θ ⊙ g)²‖_F, short of it by a factor of at most
            √rank; ``"curvature"``: the sum of g²/(2|h|) with h from two successive gradients,
            (g − g')/(θ − θ'). Rank correlations with the exact LC on three small trainees are −0.01
            to 0.69, −0.04 to 0.56 and 0.29 to 0.82 (benchmarks/lc_ranks.py).
        interval: Optimizer steps between two measurements.

    Raises:
        InputError: A setting cannot be used, or the optimizer has room for one group only.
    """

    state = ("multipliers", "_taken", "_secant")

    def __init__(
        self,
        optimizer: Optimizer,
        normalize: bool = False,
        form: Form = "frobenius",
        interval: int = 1,
    ) -> None:
        if form not in _FORMS and form != "curvature":
            raise InputError(f"Expected a form among {', '.join(_FORMS)}, curvature; got {form!r}.")
        if interval < 1:
            raise InputError(f"Expected an interval of at least 1, got {interval}; raise it.")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError(
                "Expected an optimizer with an LR for each parameter group, got LBFGS, which has "
                "one for all."
            )
        split_groups(optimizer)
        self.normalize, self.form, self.interval = normalize, form, interval
        self.multipliers = [1.0] * len(optimizer.param_groups)
        self._taken = 0
        self._secant: list[tuple[Tensor, Tensor] | None] = []
        self._set: list[float] = []
        super().__init__(optimizer)
        listen(optimizer, self)

    def before_step(self, loss: Any = None) -> None:
        """Measure where it is due, and multiply the LRs."""
        if any(len(group["params"]) != 1 for group in self.optimizer.param_groups):
            split_groups(self.optimizer)  # one that was added
        params = [group["params"][0] for group in self.optimizer.param_groups]
        added = len(params) - len(self.multipliers)
        self.multipliers = [*self.multipliers, *[1.0] * added]
        self._secant += [None] * added if self._secant else []
        due = self._taken % self.interval == 0
        if self.form == "curvature" and (self._taken + 1) % self.interval == 0 and not due:
            self._remember(params)
        # What is not finite shows in the values, but for forms that cannot be computed then.
        if due and (self.form == "frobenius" or all(_finite(p.grad) for p in params)):
            values = self._measure(params)
            if all(map(math.isfinite, values.values())):
                found = bucket_multipliers(list(values.values()), self.normalize)
                self.multipliers = [1.0] * len(params)
                for place, multiplier in zip(values, found, strict=True):
                    self.multipliers[place] = multiplier
        self._set = [float(group["lr"]) for group in self.optimizer.param_groups]
        for group, lr, factor in zip(
            self.optimizer.param_groups, self._set, self.multipliers, strict=True
        ):
            set_lr(group, lr * factor)

    def after_step(self) -> None:
        """Bring the LRs back."""
        self._taken += 1
        for group, lr in zip(self.optimizer.param_groups, self._set, strict=True):
            set_lr(group, lr)

    def _measure(self, params: Sequence[Tensor]) -> dict[int, float]:
        """Sensitivities of the tensors that have a gradient, by their places."""
        grads = {k: dense(p.grad) for k, p in enumerate(params) if p.grad is not None}
        if self.form != "curvature":
            estimate = _FORMS[self.form]
            return {
                k: float(estimate(widened(params[k].detach()), widened(g)))
                for k, g in grads.items()
            }
        last = self._secant or [None] * len(params)
        if self.interval == 1:
            self._remember(params)
        return {k: _curvature(params[k], grad, last[k]) for k, grad in grads.items()}

    def _remember(self, params: Sequence[Tensor]) -> None:
        self._secant = [
            None if p.grad is None else (p.detach().clone(), dense(p.grad).clone()) for p in params
        ]


def bucket_multipliers(sensitivities: Sequence[float], normalize: bool = False) -> list[float]:
    """Multipliers of tensors by the fifth that their sensitivities lie in.

    Where all are alike, as at the first step of LoRA, whose B is 0, there is nothing to tell
    tensors apart by, and all get 1.

    Args:
        sensitivities: One a tensor.
        normalize: Divide by their mean.
    """
    values = torch.tensor(sensitivities, dtype=torch.float64)
    if len(values) == 0 or bool((values == values[0]).all()):
        return [1.0] * len(values)
    edges = torch.quantile(values, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
    factors = torch.tensor(MULTIPLIERS, dtype=torch.float64)[torch.bucketize(values, edges)]
    found: list[float] = (factors / factors.mean() if normalize else factors).tolist()
    return found


def lc_frobenius(theta: Tensor, grad: Tensor) -> Tensor:
    """Lower bound of :func:`lrenv.statistics.lc_nuclear`, at least 1/√rank of it, a scalar."""
    return lc_bound(theta.flatten(), grad.flatten(), theta.new_ones(1))


def lc_exact(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """LC of every single parameter, g²/(2h), for small models: one backward pass a parameter.

    Args:
        loss: The loss, a scalar that still has its graph.
        params: The parameters.

    Returns:
        One tensor for each, of its shape; 0 where the second derivative is not positive.
    """
    grads = torch.autograd.grad(loss, params, create_graph=True)
    found = []
    for param, grad in zip(params, grads, strict=True):
        second = torch.zeros(param.numel(), dtype=param.dtype, device=param.device)
        for k, value in enumerate(grad.flatten()):
            if value.requires_grad:
                row = torch.autograd.grad(value, param, retain_graph=True, allow_unused=True)[0]
                second[k] = 0.0 if row is None else row.flatten()[k]
        square = grad.detach().square().flatten()
        lc = torch.where(second > 0, square / (2 * second.clamp_min(_TINY)), 0.0)
        found.append(lc.view_as(param))
    return found


_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nuclear": lc_nuclear,
    "frobenius": lc_frobenius,
}


def _curvature(param: Tensor, now: Tensor, known: tuple[Tensor, Tensor] | None) -> float:
    if known is None:
        return 0.0
    theta, grad = known
    second = ((now - grad) / (param.detach() - theta)).abs()
    lc = now.square() / (2 * second)
    return float(lc[lc.isfinite()].sum())


def _finite(grad: Tensor | None) -> bool:
    return grad is None or bool(dense(grad).isfinite().all())
