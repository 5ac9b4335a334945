"""Coming back to the last good weights of a run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Snapshot:
    """A copy of what a run trains: trained parameters, buffers and the optimizer's state.

    Args:
        model: The model; parameters that are not trained are not copied.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._values = [(tensor, tensor.detach().clone()) for tensor in _changing(model)]
        self._state = {param: _copy(state) for param, state in optimizer.state.items()}

    @torch.no_grad()
    def restore(self, optimizer: Optimizer) -> None:
        """Bring all of it back, in place."""
        for tensor, value in self._values:
            tensor.copy_(value)
        for param in list(optimizer.state):
            if param not in self._state:
                del optimizer.state[param]
        for param, state in self._state.items():
            optimizer.state[param] = _copy(state)


def _changing(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad] + list(model.buffers())


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }
