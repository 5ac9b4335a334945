"""What tasks make of data sets: fewer classes, smaller images, projections, numbers to predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset, generator_of, map_inputs, nonzero


def downsample(dataset: Dataset, size: int) -> Dataset:
    """Average-pool the images to ``size`` × ``size`` pixels.

    Raises:
        InputError: The data set holds no images, or ``size`` is not within their sides.
    """
    if dataset.image_shape is None:
        raise InputError(
            f"expected images to downsample, {dataset.name} has an image_shape of None"
        )
    channels, height, width = dataset.image_shape
    if not 1 <= size <= min(height, width):
        raise InputError(f"expected a size from 1 to {min(height, width)} pixels, got {size}")

    def pool(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.view(-1, channels, height, width), size).flatten(1)

    return replace(
        map_inputs(dataset, pool),
        name=f"{dataset.name}-{size}x{size}",
        image_shape=(channels, size, size),
    )


def some_classes(dataset: Dataset, n_classes: int, seed: int) -> Dataset:
    """Keep the examples of ``n_classes`` classes drawn at random, numbered anew.

    Raises:
        InputError: There are not as many, or fewer than two are asked for.
    """
    if not 2 <= n_classes <= dataset.n_classes:
        raise InputError(f"expected from 2 to {dataset.n_classes} classes, got {n_classes}")
    kept = torch.randperm(dataset.n_classes, generator=generator_of(seed))[:n_classes]
    new_label = torch.full((dataset.n_classes,), -1)
    new_label[kept] = torch.arange(n_classes)
    parts: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        x, y = dataset.split(name)
        labels = new_label[y]
        parts |= {f"x_{name}": x[labels >= 0], f"y_{name}": labels[labels >= 0]}
    return replace(dataset, name=f"{dataset.name}-{n_classes}c{seed}", n_classes=n_classes, **parts)


def renamed_behind(dataset: Dataset, seed: int) -> Dataset:
    """Append each training example once more, its class renamed by one random permutation."""
    renamed = torch.randperm(dataset.n_classes, generator=generator_of(seed))[dataset.y_train]
    return replace(
        dataset,
        name=f"{dataset.name}-renamed{seed}",
        x_train=torch.cat([dataset.x_train, dataset.x_train]),
        y_train=torch.cat([dataset.y_train, renamed]),
    )


def random_projection(dataset: Dataset, n_features: int, seed: int) -> Dataset:
    """Project the inputs to ``n_features`` by one Gaussian matrix, then standardise each feature.

    The matrix has variance 1/n_features_in; mean and spread are those of the train split.

    Raises:
        InputError: ``n_features`` is below 1.
    """
    if n_features < 1:
        raise InputError(f"expected n_features of at least 1, got {n_features}")
    shape = (dataset.n_features, n_features)
    matrix = torch.randn(shape, generator=generator_of(seed), dtype=torch.float32)
    matrix /= dataset.n_features**0.5
    std, mean = torch.std_mean(dataset.x_train @ matrix, dim=0)
    return replace(
        map_inputs(dataset, lambda x: (x @ matrix - mean) / nonzero(std)),
        name=f"{dataset.name}-proj{n_features}",
        image_shape=None,
    )


def standardise(dataset: Dataset) -> Dataset:
    """Shift and scale all inputs by the one mean and spread of the train split's pixels."""
    std, mean = torch.std_mean(dataset.x_train)
    return map_inputs(dataset, lambda x: (x - mean) / nonzero(std))


def halves(dataset: Dataset) -> Dataset:
    """Predict the lower half of each image from the upper one.

    Raises:
        InputError: The data set holds no images of an even height.
    """
    if dataset.image_shape is None or dataset.image_shape[1] % 2:
        raise InputError(
            f"expected images of an even height, {dataset.name} has an image_shape of "
            f"{dataset.image_shape}"
        )
    channels, height, width = dataset.image_shape

    def half(index: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x.view(-1, channels, 2, height // 2, width)[:, :, index].flatten(1)

    upper, lower = (map_inputs(dataset, half(index)) for index in (0, 1))
    return replace(
        _with_targets(standardise(upper), standardise(lower)),
        name=f"{dataset.name}-halves",
        image_shape=(channels, height // 2, width),
    )


def codes(dataset: Dataset, n_codes: int, seed: int) -> Dataset:
    """Predict random projections of the inputs, by one Gaussian matrix.

    Raises:
        InputError: ``n_codes`` is below 1.
    """
    targets = random_projection(dataset, n_codes, seed)
    return replace(
        _with_targets(standardise(dataset), targets), name=f"{dataset.name}-codes{n_codes}"
    )


def _with_targets(inputs: Dataset, targets: Dataset) -> Dataset:
    """Have the inputs of another data set of the same rows predicted."""
    return replace(
        inputs,
        y_train=targets.x_train,
        y_val=targets.x_val,
        y_test=targets.x_test,
        n_classes=targets.n_features,
    )
