"""Actions: how the number a policy returns becomes a learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_CHANGE = 2.0
"""Largest change of log LR at one decision of the scale-free preset."""

LOG_RANGE = (-7.0, 12.0)
"""Bounds of log LR relative to the start LR, scale-free preset."""

CLASSIC_RANGE = (1e-6, 1e-1)
"""Bounds of the LR itself, classic preset."""

PROBE_LR = 1e-7
"""LR of the first optimizer step, scale-free preset: too small to do harm anywhere."""

START_RATIO = 3e-4
"""Relative update size |Δθ|/|θ| at which a run starts, scale-free preset."""

_VISIBLE_RATIO = 1e-6
_PROBE_FACTOR = 100.0


def relative_lr(lr: Tensor, action: Tensor, start_lr: Tensor) -> Tensor:
    """Change log LR by at most ``MAX_CHANGE``; an action of ±1 is the largest change, ``(r,)``."""
    log_lr = torch.log(lr / start_lr) + MAX_CHANGE * action.clamp(-1.0, 1.0)
    return start_lr * torch.exp(log_lr.clamp(*LOG_RANGE))


def classic_lr(action: Tensor) -> Tensor:
    """Map [−1, 1] to log LR over ``CLASSIC_RANGE``, ``(r,)``."""
    low, high = (math.log(bound) for bound in CLASSIC_RANGE)
    return torch.exp(low + (action.clamp(-1.0, 1.0) + 1.0) / 2.0 * (high - low))


def classic_action(lr: float) -> float:
    """Inverse of :func:`classic_lr`, clipped to [−1, 1]."""
    low, high = (math.log(bound) for bound in CLASSIC_RANGE)
    share = (math.log(max(lr, CLASSIC_RANGE[0])) - low) / (high - low)
    return min(1.0, 2.0 * share - 1.0)


def calibrate(lr: Tensor, ratio: Tensor, grad_norm: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Find the unit of the LR: the LR at which an update is ``START_RATIO`` of the weights.

    A first step at ``PROBE_LR`` shows how large an update of the optimizer is. Where it drowns in
    rounding, the probe grows a hundredfold. No knowledge of the optimizer is needed, and no hint.

    Args:
        lr: The LR of the last step, ``(r,)``.
        ratio: The |Δθ|/|θ| it made, ``(r,)``.
        grad_norm: The gradient's norm, ``(r,)``; where it is 0 or not finite, the probe repeats.
        found: Runs whose LR is known already, ``(r,)``.

    Returns:
        The LR of the next step and the runs whose LR is known by now.
    """
    visible = (ratio > _VISIBLE_RATIO) & ratio.isfinite()
    unseen = ratio.isfinite() & ~visible & grad_norm.isfinite() & (grad_norm > 0)
    factor = torch.where(visible, START_RATIO / ratio, 1.0)
    factor = torch.where(unseen, _PROBE_FACTOR, factor)
    return torch.where(found, lr, lr * factor), found | visible
