"""What is read of an optimizer: what a policy is told, and the unit of its LRs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrenv.errors import InputError


@dataclass(frozen=True)
class OptimizerTraits:
    """What a policy is told of the optimizer.

    Attributes:
        known: 1 if the other two are known, ``(r,)``.
        adaptive: 1 if updates are normalised by gradient magnitudes (Adam, RMSprop), ``(r,)``.
        momentum: Momentum coefficient, 0 if there is none, ``(r,)``.
    """

    known: Tensor
    adaptive: Tensor
    momentum: Tensor


def traits_of(optimizer: torch.optim.Optimizer) -> OptimizerTraits:
    """Read the traits of a torch optimizer from its class name and first parameter group."""
    group, name = optimizer.param_groups[0], type(optimizer).__name__.lower()
    adaptive = "adam" in name or "rmsprop" in name
    known = adaptive or "sgd" in name
    momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
    row = (float(known), float(adaptive), float(momentum) if known else 0.0)
    return OptimizerTraits(*(torch.tensor([value]) for value in row))


def check_unit(optimizer: torch.optim.Optimizer) -> float:
    """Return the LR of the first group, the unit of the others'.

    Raises:
        InputError: It is not positive.
    """
    group = optimizer.param_groups[0]
    unit = float(group.get("initial_lr", group["lr"]))
    if not (unit > 0.0 and math.isfinite(unit)):
        raise InputError(
            f"Expected a positive LR in the optimizer's first parameter group, got {unit}; it only "
            "sets the ratios between groups, any positive number will do."
        )
    return unit
