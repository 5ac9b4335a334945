"""ALR: learning rates from the norms of gradients and activations.

Source: "Layer Dance".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrenv import processes
from lrenv.adaptive.within_step import WithinStep
from lrenv.errors import InputError
from lrenv.gradients import dense, widened
from lrenv.hooks import listen, set_lr

_EMA = 0.9
_GRADIENT_SHARE, _ACTIVATION_SHARE = 0.98, 0.02
_KEEP = 0.75


class ALRScheduler(WithinStep):
    """Divides the LR by 1 + a score of how large gradient and activations are for the run.

    With moving averages (0.9, from 1) of the gradient's norm n_g and the activations' norm n_a, the
    score is 0.98·σ(n_g/avg_g) + 0.02·σ(n_a/avg_a), and the LR moves by a quarter of the way to
    base/(1 + score). What it really does: norms are positive, so σ is between ½ and 1, and the LR
    between 0.5 and 0.667 of its base. It is nearly constant, and what it gains over a decaying
    schedule is that it does not decay.

    Args:
        optimizer: Any torch optimizer; each group's LR is its base.
        modules: Modules whose outputs' norms count; their root mean square is taken. None for no
            activations, whose part of the score is then that of an average one.
        min_lr: Lower bound of the LR.
        max_lr: Upper bound of the LR.

    Raises:
        InputError: The bounds are in the wrong order.
    """

    state = ("averages", "base_lrs")

    def __init__(
        self,
        optimizer: Optimizer,
        modules: Iterable[nn.Module] = (),
        min_lr: float = 0.0,
        max_lr: float = math.inf,
    ) -> None:
        if not min_lr <= max_lr:
            raise InputError(f"Expected min_lr below max_lr, got {min_lr} and {max_lr}.")
        self.bounds = (min_lr, max_lr)
        self.averages = [1.0, 1.0]
        self._squares: list[Tensor] = []
        super().__init__(optimizer)
        self._hooks = [module.register_forward_hook(self._watch) for module in modules]
        listen(optimizer, self)

    def close(self) -> None:
        """Take the hooks off the modules."""
        for hook in self._hooks:
            hook.remove()

    def before_step(self, loss: Any = None) -> None:
        """Read the norms, and set the LRs of the step."""
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"]]
        norms = [_norm(dense(grad)) for grad in grads if grad is not None]
        gradient = float(torch.stack(norms).square().sum().sqrt()) if norms else math.nan
        activation = math.nan
        if self._squares:
            activation = float(processes.mean(torch.stack(self._squares).mean()).sqrt())
        self._squares = []
        score = _GRADIENT_SHARE * self._sigmoid(0, gradient)
        score += _ACTIVATION_SHARE * self._sigmoid(1, activation)
        low, high = self.bounds
        self.base_lrs += [
            float(group["lr"]) for group in self.optimizer.param_groups[len(self.base_lrs) :]
        ]
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            raw = min(max(float(base) / (1.0 + score), low), high)
            set_lr(group, _KEEP * float(group["lr"]) + (1.0 - _KEEP) * raw)
        self._last_lr = self.get_lr()

    def after_step(self) -> None:
        """Nothing: the LR holds until the next backward pass."""

    def _sigmoid(self, which: int, norm: float) -> float:
        """σ of a norm over its average, which takes it in; one that is not finite is skipped."""
        ratio = 1.0
        if math.isfinite(norm):
            self.averages[which] = _EMA * self.averages[which] + (1.0 - _EMA) * norm
            ratio = norm / self.averages[which] if self.averages[which] > 0 else 1.0
        return 1.0 / (1.0 + math.exp(-ratio))

    def _watch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if module.training and isinstance(value, Tensor):
            self._squares.append(_norm(value.detach()).square())


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(widened(tensor))  # squares of halves overflow
    return norm
