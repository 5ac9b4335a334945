"""Kinds of training tasks in conditions that others hardly meet, drawn by number.

Their data is repeated many times, rough, drawn at random for each task, or lasts for long.
"""

from __future__ import annotations

import random
from typing import Any

from lrenv.trainees.changing import ChangingMLPSpec
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.draws import draw_data, draw_optimizer, log_uniform
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.regressor import RegressorSpec
from lrenv.trainees.specs import RunSpec
from lrenv.trainees.tasks import DataSpec, Task


def repeated(index: int) -> Task:
    """Few examples, up to hundreds of passes; all models but adapted decoders."""
    draw = random.Random(f"repeated-{index}")
    optimizer = draw_optimizer(draw)
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "batch_size": draw.choice((8, 16, 32, 64, 128)),
        "total_steps": round(log_uniform(draw, 100, 1200)),
        "label_noise": draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, 0.3))),
    }
    activation = draw.choice(("relu", "relu", "tanh", "gelu"))
    n_train = round(log_uniform(draw, 60, 1500))
    seed = draw.randrange(8)
    kind = draw.choice(("mlp", "mlp", "convnet", "convnet", "regressor", "decoder"))
    spec: RunSpec
    if kind == "decoder":
        settings["label_noise"] = 0.0
        settings["batch_size"] = draw.choice((4, 8, 16))
        spec = DecoderSpec(width=draw.choice((16, 32)), layers=1, heads=2, **settings)
        data = DataSpec("python-docs", context=draw.choice((8, 16)), n_train=n_train)
    elif kind == "convnet":
        channels = draw.choice(((4, 8), (8, 16), (16, 16)))
        batch_norm = draw.random() < 0.5
        spec = ConvNetSpec(channels, activation=activation, batch_norm=batch_norm, **settings)
        size, n_classes = draw.choice((8, 10)), draw.choice((3, 5, 10))
        data = DataSpec("mnist-5k", size=size, n_classes=n_classes, n_train=n_train, seed=seed)
    elif kind == "regressor":
        hidden = (draw.choice((16, 32, 64)),) * draw.choice((1, 2))
        multiplier = 10 ** draw.uniform(0, 1.5) if optimizer.name == "sgd" else 1.0
        spec = RegressorSpec(hidden, activation=activation, lr_multiplier=multiplier, **settings)
        size, n_outputs = draw.choice((6, 10)), draw.choice((8, 32))
        data = DataSpec("codes", size=size, n_classes=n_outputs, n_train=n_train, seed=seed)
    else:
        hidden = (draw.choice((16, 32, 64, 96)),) * draw.choice((1, 2, 3))
        spec = MLPSpec(hidden, activation=activation, **settings)
        inputs, n_classes = draw.choice((8, 16, 32, 64)), draw.choice((2, 3, 5, 10))
        data = DataSpec(
            "mnist-5k", projection=inputs, n_classes=n_classes, n_train=n_train, seed=seed
        )
    return Task(data, spec, seed=index)


def rough(index: int) -> Task:
    """MLPs on any batch size, noise and initial weights; the data of a quarter changes midway."""
    draw = random.Random(f"rough-{index}")
    changes = draw.random() < 0.25
    spec = (ChangingMLPSpec if changes else MLPSpec)(
        hidden=(draw.choice((16, 32, 64, 96)),) * draw.choice((1, 2, 2, 3)),
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=round(log_uniform(draw, 4, 512)),
        total_steps=round(log_uniform(draw, 50, 1200)),
        label_noise=draw.choice((0.0, 0.0, draw.uniform(0.0, 0.6))),
        init_scale=draw.choice((1.0, log_uniform(draw, 0.2, 8.0))),
    )
    if changes:
        size, seed = draw.choice((7, 10, 14)), draw.randrange(8)
        return Task(DataSpec("renamed-mnist-5k", size=size, seed=seed), spec, seed=index)
    return Task(draw_data(draw), spec, seed=index)


def picture(index: int) -> Task:
    """Convolutional networks and MLPs on pictures of random patterns, unlike any digits."""
    return _small_picture("picture", index, most_noise=0.3, convnets=0.6, fewest=100)


def photo(index: int) -> Task:
    """Convolutional networks and MLPs on patches of photographs, most of which carry over."""
    return _small_picture("photo", index, most_noise=0.2, convnets=0.7, fewest=300)


def _small_picture(name: str, index: int, most_noise: float, convnets: float, fewest: int) -> Task:
    """Draw a task on the data set of that name in the plural.

    Args:
        name: What it is called.
        index: The number of the task.
        most_noise: Largest share of random labels.
        convnets: Share of convolutional networks.
        fewest: Fewest training examples.
    """
    draw = random.Random(f"{name}-{index}")
    settings: dict[str, Any] = {
        "activation": draw.choice(("relu", "relu", "tanh", "gelu")),
        "optimizer": draw_optimizer(draw),
        "batch_size": draw.choice((8, 16, 32, 64)),
        "total_steps": round(log_uniform(draw, 50, 1000)),
        "label_noise": draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, most_noise))),
    }
    size = draw.choice((6, 8, 10))
    spec: RunSpec
    if draw.random() < convnets:
        channels = draw.choice(((4, 8), (8, 16), (16, 16), (8, 16, 32)))
        channels = channels if size >= 2 ** len(channels) else channels[:2]
        spec = ConvNetSpec(channels=channels, batch_norm=draw.random() < 0.5, **settings)
    else:
        spec = MLPSpec((draw.choice((32, 64, 96)),) * draw.choice((1, 2, 3)), **settings)
    data = DataSpec(
        f"{name}s",
        size=size,
        n_classes=draw.choice((2, 3, 5, 10, 10, 20)),
        n_train=round(log_uniform(draw, fewest, 3000)),
        seed=index,
    )
    return Task(data, spec, seed=index)


def table(index: int) -> Task:
    """MLPs on clusters, few of whose columns and rows may tell anything."""
    draw = random.Random(f"table-{index}")
    spec = MLPSpec(
        hidden=(draw.choice((16, 32, 64, 96)),) * draw.choice((1, 2, 3)),
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32, 64)),
        total_steps=round(log_uniform(draw, 50, 1000)),
    )
    data = DataSpec(
        "clusters",
        projection=draw.choice((4, 8, 16, 32)),
        n_classes=draw.choice((2, 2, 3, 5, 10)),
        n_train=round(log_uniform(draw, 60, 3000)),
        seed=index,
    )
    return Task(data, spec, seed=index)


def lasting(index: int) -> Task:
    """Small MLPs that pass over their data up to thousands of times."""
    draw = random.Random(f"lasting-{index}")
    spec = MLPSpec(
        hidden=(draw.choice((16, 32, 48)),) * draw.choice((1, 2)),
        activation=draw.choice(("relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32)),
        total_steps=round(log_uniform(draw, 1000, 20_000)),
        label_noise=draw.choice((0.0, 0.0, draw.uniform(0.0, 0.3))),
    )
    n_train, seed = round(log_uniform(draw, 100, 3000)), draw.randrange(8)
    kind = draw.choice(("mnist-5k", "clusters", "pictures"))
    if kind == "mnist-5k":
        data = DataSpec(kind, size=draw.choice((7, 10)), n_train=n_train, seed=seed)
    elif kind == "clusters":
        n_classes, inputs = draw.choice((2, 3, 10)), draw.choice((8, 16, 32))
        data = DataSpec(kind, projection=inputs, n_classes=n_classes, n_train=n_train, seed=index)
    else:
        n_classes, size = draw.choice((2, 5, 10)), draw.choice((6, 8))
        data = DataSpec(kind, size=size, n_classes=n_classes, n_train=n_train, seed=index)
    return Task(data, spec, seed=index)
