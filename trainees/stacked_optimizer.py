"""Optimizers on stacked parameters, each run with its own settings, as torch.optim defines them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrenv.trainees.specs import RunSpec
from lrenv.traits import OptimizerTraits

_EPSILON = 1e-8


class StackedOptimizer:
    """SGD with momentum, Adam, AdamW or RMSprop for runs in lockstep.

    Args:
        specs: The specification of each run; the name of the optimizer is the same in all.
        params: The parameters, ``(r, ...)`` each, updated in place.
    """

    def __init__(self, specs: Sequence[RunSpec], params: Sequence[Tensor]) -> None:
        self._name, self._params = specs[0].optimizer.name, params

        def column(values: Sequence[float]) -> Tensor:
            return params[0].new_tensor(values)

        self._momentum = column([s.optimizer.momentum for s in specs])
        self._beta2 = column([s.optimizer.beta2 for s in specs])
        self._decay = column([s.optimizer.weight_decay for s in specs])
        self._multiplier = column([s.lr_multiplier for s in specs])
        self._decays = any(s.optimizer.weight_decay for s in specs)
        self._first = [torch.zeros_like(p) for p in params]
        self._second = [] if self._name == "sgd" else [torch.zeros_like(p) for p in params]
        self._step = 0

    @property
    def traits(self) -> OptimizerTraits:
        """What a policy is told of the optimizers."""
        momentum = self._momentum.float()
        adaptive = torch.full_like(momentum, float(self._name != "sgd"))
        return OptimizerTraits(torch.ones_like(momentum), adaptive, momentum)

    def step(self, lr: Tensor, grads: Sequence[Tensor]) -> None:
        """Update all parameters by their gradients at learning rates ``(r,)``."""
        self._step += 1
        # What is the same for all tensors is computed once: small ones cost as much as their calls.
        rates = lr.to(self._multiplier) * self._multiplier
        corrections = (1 - self._beta2**self._step).sqrt()
        epsilons = _EPSILON * corrections
        scales = rates * corrections / (1 - self._momentum**self._step)
        rest1, rest2 = 1 - self._momentum, 1 - self._beta2
        kept = 1 - rates * self._decay
        for k, (param, grad) in enumerate(zip(self._params, grads, strict=True)):
            tail, first = (-1,) + (1,) * (param.ndim - 1), self._first[k]
            if self._decays and self._name == "adamw":
                param.mul_(kept.view(tail))
            elif self._decays:
                grad = grad + self._decay.view(tail) * param
            if self._name == "sgd":
                first.mul_(self._momentum.view(tail)).add_(grad)
                param.addcmul_(first, rates.view(tail), value=-1)
                continue
            second = self._second[k].lerp_(grad.square(), rest2.view(tail).expand_as(grad))
            if self._name == "rmsprop":
                first.mul_(self._momentum.view(tail))
                first.addcdiv_(grad, second.sqrt().add_(_EPSILON))
                param.addcmul_(first, rates.view(tail), value=-1)
                continue
            first.lerp_(grad, rest1.view(tail).expand_as(grad))
            root = second.sqrt().add_(epsilons.view(tail))
            param.addcmul_(first.div(root), scales.view(tail), value=-1)
