"""What a scheduler reads of an optimizer: its parameters and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lrenv.errors import InputError
from lrenv.hooks import parameters_of
from lrenv.processes import own_shard


class GradientReader:
    """Reads the parameters of an optimizer that have a gradient when they are chosen.

    Args:
        optimizer: The optimizer.

    Attributes:
        places: Which of its parameters these are, by their numbers over all groups.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.places: list[int] = []
        self._shapes: list[torch.Size] = []

    def choose(self) -> bool:
        """Choose parameters anew where none of them trains any more, or their shapes changed.

        Returns:
            Whether it did.
        """
        params = parameters_of(self._optimizer)
        read = [params[i] for i in self.places if i < len(params)]
        shapes = [p.shape for p in read]
        same = len(read) == len(self.places) and shapes == (self._shapes or shapes)
        frozen = all(p.grad is None for p in read) and any(p.grad is not None for p in params)
        self._shapes = shapes
        if not self.places or (same and not frozen):
            return False
        self.places, self._shapes = [], []
        return True

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
        params = parameters_of(self._optimizer)
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
    whole = [dense(t) for t in own]
    return [(torch.view_as_real(t) if t.is_complex() else t)[None] for t in whole]


def widened(tensor: Tensor) -> Tensor:
    """Half precision as single, complex numbers as pairs, and any other tensor as it is."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor


def dense(tensor: Tensor) -> Tensor:
    """A sparse tensor as a dense one, and any other as it is."""
    return tensor.to_dense() if tensor.is_sparse else tensor
