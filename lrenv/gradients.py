"""What a scheduler reads of an optimizer: its parameters and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrenv.errors import InputError
from lrenv.processes import own_shard


class GradientReader:
    """Reads the parameters of an optimizer that have a gradient when they are first read.

    Args:
        optimizer: The optimizer.

    Attributes:
        places: Which of its parameters these are, by their numbers over all groups.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.places: list[int] = []

    def parameters(self) -> list[Tensor]:
        """Return the parameters, or this process's shards, as those of one run, ``(1, ...)`` each.

        Raises:
            InputError: None of them has a gradient.
        """
        return _as_runs(self._read())

    def gradients(self) -> list[Tensor]:
        """Return their gradients likewise, zero where there is none any more."""
        params = self._read()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        # Under mixed precision a fused optimizer undoes the scaling itself, within its step.
        scale = getattr(self._optimizer, "grad_scale", None)
        return _as_runs(grads if scale is None else [grad / scale for grad in grads])

    def _read(self) -> list[Tensor]:
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        if not self.places:
            self.places = [i for i, p in enumerate(params) if p.grad is not None and p.numel() > 0]
            if not self.places:
                raise InputError(
                    "Expected gradients at the optimizer step, got none; call loss.backward() "
                    "before optimizer.step(), or in its closure."
                )
        return [params[i] for i in self.places]


def _as_runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    own = [own_shard(t.detach()) for t in tensors]
    return [(t.to_dense() if t.is_sparse else t)[None] for t in own]
