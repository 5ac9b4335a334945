"""An autoencoder under squared error.

Shape legend: n batch size, i inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.looped import LoopedModel
from lrenv.trainees.specs import ACTIVATIONS, RunSpec


@dataclass(frozen=True)
class AutoencoderSpec(RunSpec):
    """A run of an autoencoder; the labels of its data set are not read.

    Attributes:
        hidden: Width of each layer of the encoder, the code last; the decoder mirrors it.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
    """

    kind: ClassVar[str] = "autoencoder"
    hidden: tuple[int, ...] = (64, 16)
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden:
            raise InputError("Expected the width of at least one hidden layer, got none.")

    def build(self, dataset: Dataset) -> nn.Sequential:
        """Make the model for a data set of numbers: ``(n, i)`` to ``(n, i)``."""
        if not dataset.x_train.is_floating_point():
            raise InputError(
                f"Expected numbers for an autoencoder, {dataset.name} holds tokens; choose images."
            )
        n = dataset.n_features
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((n, *self.hidden, *self.hidden[-2::-1], n)):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> LoopedModel:
        """Train models that :meth:`build` made one after another."""
        return LoopedModel(self, models, dtype, device)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of a batch, a scalar."""
        return F.mse_loss(model(x), x)

    def score(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed squared errors over a batch, no hits, and the number of errors."""
        error = F.mse_loss(model(x), x, reduction="sum")
        return error, torch.full_like(error, torch.nan), x.numel()
