"""Multi-layer perceptrons that predict numbers, under squared error.

Shape legend: r runs, n batch size, o outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.trainees.mlp import MLPSpec, StackedMLP


@dataclass(frozen=True)
class RegressorSpec(MLPSpec):
    """A run of an MLP on a data set whose labels are numbers, ``(n, o)``."""

    kind: ClassVar[str] = "regressor"

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedRegressor:
        """Stack models that :meth:`build` made."""
        return StackedRegressor(self.activation, models, dtype, device)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of a batch, a scalar."""
        return F.mse_loss(model(x), y.to(x.dtype))

    def score(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed squared errors over a batch, no hits, and the number of errors."""
        error = F.mse_loss(model(x), y.to(x.dtype), reduction="sum")
        return error, torch.full_like(error, torch.nan), y.numel()


class StackedRegressor(StackedMLP):
    """MLPs under squared error in stacked tensors."""

    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed squared errors ``(r,)``, no hits, and the number of errors."""
        outputs = self._forward(self.params, x)[0][-1]
        errors = (outputs - y.T.to(outputs.dtype)).square().sum((1, 2))
        return errors, torch.full_like(errors, torch.nan), y.numel()

    def output_gradient(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared errors ``(r,)``, and their gradient in the outputs, ``(r, o, n)``."""
        error = outputs - y.transpose(1, 2)
        return error.square().mean((1, 2)), error.mul_(2.0 / error[0].numel())
