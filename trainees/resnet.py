"""ResNet-18 (He et al. 2016) as torchvision builds it, on images of any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.looped import LoopedModel
from lrenv.trainees.specs import RunSpec


@dataclass(frozen=True)
class ResNet18Spec(RunSpec):
    """A run of ResNet-18; its weights are drawn as torchvision draws them."""

    kind: ClassVar[str] = "resnet18"
    keeps_weights: ClassVar[bool] = True
    lockstep: ClassVar[int | None] = 4
    eval_batch: ClassVar[int] = 250
    val_examples: ClassVar[int | None] = 250

    def build(self, dataset: Dataset) -> nn.Module:
        """Make the model for a data set of images: ``(n, o·h·w)`` to ``(n, c)``."""
        from torchvision.models import resnet18

        if dataset.image_shape is None:
            raise InputError(
                f"Expected images for ResNet-18, {dataset.name} has none; choose another data set."
            )
        model = resnet18(num_classes=dataset.n_classes)
        channels = dataset.image_shape[0]
        if channels != model.conv1.in_channels:
            model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(nn.Unflatten(1, dataset.image_shape), model)

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> LoopedModel:
        """Train models that :meth:`build` made one after another."""
        return LoopedModel(self, models, dtype, device)
