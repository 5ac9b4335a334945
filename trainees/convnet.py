"""Small convolutional networks, single and stacked as grouped convolutions.

Shape legend: r runs, n batch size, h height, w width, o channels, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.specs import ACTIVATIONS, RunSpec
from lrenv.trainees.stacked import StackedModel, classify


@dataclass(frozen=True)
class ConvNetSpec(RunSpec):
    """A run of a convolutional network.

    Attributes:
        channels: Output channels of each 3×3 convolution; 2×2 max pooling follows each.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
        batch_norm: Whether each convolution is followed by batch norm.
    """

    kind: ClassVar[str] = "convnet"
    channels: tuple[int, ...] = (8, 16)
    activation: str = "relu"
    batch_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels:
            raise InputError("Expected channels of at least one convolution, got none; or an MLP.")

    def build(self, dataset: Dataset) -> nn.Sequential:
        """Make the model for a data set of images: ``(n, o·h·w)`` to ``(n, c)``."""
        if dataset.image_shape is None:
            raise InputError(
                f"Expected images for a convolutional network, {dataset.name} has none; "
                "choose another data set or an MLP."
            )
        n_in, height, width = dataset.image_shape
        if min(height, width) < 2 ** len(self.channels):
            raise InputError(
                f"Expected images of at least {2 ** len(self.channels)} pixels a side for "
                f"{len(self.channels)} poolings, got {height}x{width}; use fewer channels."
            )
        layers: list[nn.Module] = [nn.Unflatten(1, dataset.image_shape)]
        for before, after in pairwise((n_in, *self.channels)):
            layers.append(nn.Conv2d(before, after, 3, padding=1))
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(after))
            layers += [ACTIVATIONS[self.activation](), nn.MaxPool2d(2)]
            height, width = height // 2, width // 2
        flat = self.channels[-1] * height * width
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, dataset.n_classes))

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedConvNet:
        """Stack models that :meth:`build` made."""
        return StackedConvNet(models, dtype, device)


class StackedConvNet(StackedModel):
    """Convolutional networks as one network of grouped convolutions, a group a run.

    Args:
        models: The models.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    def __init__(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(models, dtype, device)
        self._layers = list(models[0].named_children())

    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Predict, see :class:`StackedModel`."""
        n_runs = len(self.params[0])
        shared = x.ndim == 2
        for name, layer in self._layers:
            own = {k: params[f"{name}.{k}"] for k, _ in layer.named_parameters()}
            if isinstance(layer, nn.Unflatten):
                x = (x if shared else x.transpose(0, 1)).unflatten(-1, layer.unflattened_size)
                x = x if shared else x.flatten(1, 2)
            elif isinstance(layer, nn.Conv2d):
                weight, bias = own["weight"].flatten(0, 1), own["bias"].flatten()
                x = F.conv2d(x, weight, bias, padding=1, groups=1 if shared else n_runs)
                shared = False
            elif isinstance(layer, nn.BatchNorm2d):
                x = self._normalise(name, layer, own, x, training)
            elif isinstance(layer, nn.Linear):
                x = classify(x.transpose(0, 1), own["weight"], own["bias"])
            elif isinstance(layer, nn.Flatten):
                x = x.unflatten(1, (n_runs, -1)).flatten(2)
            else:
                x = layer(x)
        return x

    def _normalise(
        self, name: str, layer: nn.BatchNorm2d, own: dict[str, Tensor], x: Tensor, training: bool
    ) -> Tensor:
        mean, var = (self.buffers[f"{name}.running_{k}"].view(-1) for k in ("mean", "var"))
        weight, bias = own["weight"].flatten(), own["bias"].flatten()
        assert layer.momentum is not None
        return F.batch_norm(x, mean, var, weight, bias, training, layer.momentum, layer.eps)
