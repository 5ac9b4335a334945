"""Data sets drawn at random: teachers, pictures, patches of photographs, tables of clusters.

Shape legend: n examples, c channels, h height, w width.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset, generator_of, nonzero, split_rows, take

_LARGEST_PATCH = 30  # whose surroundings fit into a photograph of a quarter's side


def teacher_dataset(
    n_features: int, n_classes: int, n_samples: int, seed: int, numbers: bool = False
) -> Dataset:
    """Label Gaussian inputs by a random two-layer tanh network of 32 hidden units.

    The teacher's outputs are standardised over the samples, so that no class dominates.

    Args:
        n_features: Inputs.
        n_classes: Outputs of the teacher.
        n_samples: Examples of all splits together.
        seed: Seed of teacher and inputs.
        numbers: Labels are the teacher's outputs, rather than the largest one's index.

    Raises:
        InputError: Fewer than 1 feature, 2 classes (1 output), or 5 samples a class are asked for.
    """
    least = 1 if numbers else 2
    _check({"n_features": (n_features, 1), "n_classes": (n_classes, least)}, n_samples)
    generator = generator_of(seed)

    def gaussian(rows: int, columns: int) -> Tensor:
        return torch.randn((rows, columns), generator=generator, dtype=torch.float32)

    x, n_hidden = gaussian(n_samples, n_features), 32
    # A gain of 2 bends the tanh: at 1 the teacher would be almost linear.
    hidden = torch.tanh(x @ gaussian(n_features, n_hidden) * (2 / n_features**0.5))
    outputs = hidden @ gaussian(n_hidden, n_classes)
    outputs = (outputs - outputs.mean(0)) / outputs.std(0)
    return take(
        x,
        outputs if numbers else outputs.argmax(1),
        split_rows(n_samples),
        name=f"teacher-{n_features}f-{n_classes}{'o' if numbers else 'c'}",
        n_classes=n_classes,
        note=f"Gaussian inputs labelled by a random two-layer tanh network, seed {seed}",
    )


def picture_dataset(n_classes: int, size: int, n_samples: int, seed: int) -> Dataset:
    """Draw pictures of random patterns, standardised over all pixels.

    Each class has one to three patterns. A picture is one of them, moved by up to two pixels and of
    varied contrast, under noise. How far, how varied and how noisy is drawn once for the data set,
    so that some are learned without error and others hardly.

    Args:
        n_classes: Classes.
        size: Side of the pictures in pixels.
        n_samples: Examples of all splits together.
        seed: Seed of patterns and pictures.

    Raises:
        InputError: Fewer than 2 classes, 4 pixels, or 5 samples a class are asked for.
    """
    _check({"n_classes": (n_classes, 2), "size": (size, 4)}, n_samples)
    generator = generator_of(seed)
    channels, per_class, most = (_pick(v, generator) for v in ((1, 1, 3), (1, 2, 3), (0, 1, 2)))
    noise, varied = 0.2 * 20.0 ** _uniform(generator), 0.5 * _uniform(generator)
    patterns = _patterns(n_classes * per_class, channels, size, generator)

    labels, variants = _members(n_classes, per_class, n_samples, generator)
    x = _moved(patterns[variants], most, generator)
    return take(
        _standard_pictures(x, varied, noise, generator),
        labels,
        split_rows(n_samples),
        name=f"pictures-{size}x{size}-{n_classes}c",
        n_classes=n_classes,
        note=f"random patterns, moved and under noise, seed {seed}",
        image_shape=(channels, size, size),
    )


def photo_dataset(n_classes: int, size: int, n_samples: int, seed: int) -> Dataset:
    """Cut patches out of scikit-learn's two photographs, standardised over all pixels.

    Each class has one to three square places; a patch lies anywhere in one of them, under a little
    noise. The scale of the photographs, how far patches reach into their surroundings, whether they
    are in colour, contrast and noise are drawn once for the data set. What is learned mostly
    carries over to further patches.

    Args:
        n_classes: Classes.
        size: Side of the patches in pixels.
        n_samples: Examples of all splits together.
        seed: Seed of places and patches.

    Raises:
        InputError: Fewer than 2 classes, 4 pixels, or 5 samples a class are asked for, or patches
            too large for the photographs.
    """
    _check({"n_classes": (n_classes, 2), "size": (size, 4)}, n_samples)
    if size > _LARGEST_PATCH:
        raise InputError(f"expected a size of at most {_LARGEST_PATCH}, got {size}")
    generator = generator_of(seed)
    channels, per_class, scale = (_pick(v, generator) for v in ((1, 1, 3), (1, 2, 3), (1, 2, 4)))
    reach = size // 2 + int(_uniform(generator) * 2 * size)
    noise, varied = 0.3 * _uniform(generator) ** 2, 0.3 * _uniform(generator)
    photos = _photos(channels, scale)

    n_places = n_classes * per_class
    place = torch.randint(n_places, (n_samples,), generator=generator)
    photo = torch.randint(len(photos), (n_places,), generator=generator)
    space = torch.tensor(photos.shape[-2:]) - size - reach
    corners = (torch.rand(n_places, 2, generator=generator) * space).long()
    at = corners[place] + torch.randint(reach + 1, (n_samples, 2), generator=generator)
    rows, columns = (at[:, i, None] + torch.arange(size) for i in (0, 1))
    x = photos.permute(0, 2, 3, 1)[photo[place][:, None, None], rows[:, :, None], columns[:, None]]
    x = x.permute(0, 3, 1, 2) / photos.std()
    return take(
        _standard_pictures(x, varied, noise, generator),
        place // per_class,
        split_rows(n_samples),
        name=f"photos-{size}x{size}-{n_classes}c",
        n_classes=n_classes,
        note=f"places in scikit-learn's two photographs, seed {seed}",
        image_shape=(channels, size, size),
    )


def cluster_dataset(n_features: int, n_classes: int, n_samples: int, seed: int) -> Dataset:
    """Draw a table whose classes are clusters, each column standardised by the train split.

    Each class has one to three Gaussian clusters, all stretched by one random matrix, so that
    columns correlate. How far they lie apart, and how many labels of all splits are random, is
    drawn once for the data set.

    Args:
        n_features: Columns.
        n_classes: Classes.
        n_samples: Examples of all splits together.
        seed: Seed of the table.

    Raises:
        InputError: Fewer than 1 column, 2 classes, or 5 samples a class are asked for.
    """
    _check({"n_features": (n_features, 1), "n_classes": (n_classes, 2)}, n_samples)
    generator = generator_of(seed)
    per_class = _pick((1, 2, 3), generator)
    apart, random_share = 0.5 * 8.0 ** _uniform(generator), 0.1 * _uniform(generator) ** 2

    shape = (n_classes * per_class, n_features)
    centres = apart * torch.randn(shape, generator=generator)
    stretch = torch.randn(n_features, n_features, generator=generator) / math.sqrt(n_features)
    labels, variants = _members(n_classes, per_class, n_samples, generator)
    x = torch.randn(n_samples, n_features, generator=generator) @ stretch
    x = x + centres[variants] / math.sqrt(n_features)
    x = _spoiled(x, generator)
    rows = split_rows(n_samples)
    std, mean = torch.std_mean(x[rows[0]], dim=0)
    redrawn = torch.rand(n_samples, generator=generator) < random_share
    other = torch.randint(n_classes, (n_samples,), generator=generator)
    return take(
        (x - mean) / nonzero(std),
        torch.where(redrawn, other, labels),
        rows,
        name=f"clusters-{n_features}f-{n_classes}c",
        n_classes=n_classes,
        note=f"Gaussian clusters, stretched and skewed, seed {seed}",
    )


def _check(sizes: dict[str, tuple[int, int]], n_samples: int) -> None:
    """Refuse sizes, given with the least of each, and fewer than 5 samples a class."""
    n_classes, _ = sizes["n_classes"]
    if any(value < least for value, least in sizes.values()) or n_samples < 5 * n_classes:
        expected = ", ".join(f"{name} >= {least}" for name, (_, least) in sizes.items())
        got = ", ".join(str(value) for value, _ in sizes.values())
        raise InputError(
            f"expected {expected} and n_samples >= 5 * n_classes, got {got} and {n_samples}"
        )


def _members(
    n_classes: int, per_class: int, n_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The class of each example, and which of all classes' variants it is, ``(n,)`` each."""
    labels = torch.randint(n_classes, (n_samples,), generator=generator)
    variant = torch.randint(per_class, (n_samples,), generator=generator)
    return labels, labels * per_class + variant


def _patterns(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Random patterns ``(count, c, h, w)``, more or less smooth.

    Half of the data sets have sparse ones, like strokes, of which a few are blank.
    """
    grid = _pick((size, size // 2, max(2, size // 3)), generator)
    coarse = torch.randn(count, channels, grid, grid, generator=generator)
    patterns = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    if _pick((False, True), generator):
        patterns = F.relu(patterns - 0.3)
    return patterns / patterns.std((1, 2, 3), keepdim=True).clamp_min(1e-3)


@cache
def _photos(channels: int, scale: int) -> Tensor:
    """Both photographs ``(2, c, h, w)``, as many times smaller, grey if they have one channel."""
    from sklearn.datasets import load_sample_images

    pixels = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    photos = pixels.permute(0, 3, 1, 2).float() / 255
    photos = photos.mean(1, keepdim=True) if channels == 1 else photos
    return F.avg_pool2d(photos, scale) - photos.mean()


def _standard_pictures(
    x: Tensor, varied: float, noise: float, generator: torch.Generator
) -> Tensor:
    """Vary the contrast of pictures ``(n, c, h, w)``, add noise, standardise and flatten them."""
    x = x * torch.exp(varied * torch.randn(len(x), 1, 1, 1, generator=generator))
    x = x + noise * torch.randn(x.shape, generator=generator)
    return ((x - x.mean()) / x.std()).flatten(1)


def _moved(pictures: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each picture ``(n, c, h, w)`` by up to ``most`` pixels along both sides."""
    height, width = pictures.shape[-2:]
    padded = F.pad(pictures, (most,) * 4)
    shifts = torch.randint(2 * most + 1, (2, len(pictures)), generator=generator)
    rows = shifts[0][:, None] + torch.arange(height)
    columns = shifts[1][:, None] + torch.arange(width)
    chosen = torch.arange(len(pictures))[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[chosen, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _spoiled(x: Tensor, generator: torch.Generator) -> Tensor:
    """A table ``(n, columns)`` some of whose columns are skewed, and some tell nothing."""
    skewed = torch.rand(x.shape[1], generator=generator) < 0.3
    useless = torch.rand(x.shape[1], generator=generator) < 0.2
    x = torch.where(useless, torch.randn(x.shape, generator=generator), x)
    return torch.where(skewed, torch.exp(x), x)


def _pick(values: tuple[int, ...], generator: torch.Generator) -> int:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
