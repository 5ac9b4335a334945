"""Kinds of training tasks, drawn by number.

They are MLPs on down-sampled or projected MNIST-5k and on random teachers, which classify or
predict numbers, convolutional networks on down-sampled MNIST-5k, and decoders on characters of the
Python reference and on Markov chains.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from lrenv.trainees.adapted import AdaptedDecoderSpec
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.draws import draw_adam, draw_data, draw_optimizer, draw_steps, log_uniform
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.regressor import RegressorSpec
from lrenv.trainees.specs import RunSpec
from lrenv.trainees.tasks import DataSpec, Task

_LONG = 1000
"""Optimizer steps above which models are small, for the sake of the time the experts take."""


def varied(index: int) -> Task:
    """Small models in hard conditions: few examples, label noise, odd initial weights."""
    draw = random.Random(f"training-{index}")
    steps = round(log_uniform(draw, 100, 1200))
    spec = MLPSpec(
        hidden=(draw.choice((16, 24, 32, 48, 64, 96)),) * draw.choice((1, 1, 2, 2, 3)),
        activation=draw.choice(("relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32, 64, 128)),
        total_steps=steps,
        label_noise=draw.choice((0.0, draw.uniform(0.0, 0.3))),
        init_scale=log_uniform(draw, 0.5, 2.0),
    )
    return Task(draw_data(draw), spec, seed=index)


def plain(index: int) -> Task:
    """Wider models as most people train them: clean labels, usual initial weights, all data."""
    draw = random.Random(f"plain-{index}")
    steps = round(log_uniform(draw, 100, 800))
    spec = MLPSpec(
        hidden=(draw.choice((32, 64, 96, 192, 256)),) * draw.choice((1, 1, 2, 2, 3)),
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((16, 32, 64)),
        total_steps=steps,
        label_noise=draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, 0.2))),
    )
    if draw.random() < 0.3:
        data = DataSpec("mnist-5k", projection=draw.choice((48, 96)), seed=draw.randrange(8))
    else:
        data = DataSpec("mnist-5k", size=draw.choice((14, 20)))
    return Task(data, spec, seed=index)


def convnet(index: int) -> Task:
    """Convolutional networks with and without batch norm; long runs are of small ones."""
    draw = random.Random(f"convnet-{index}")
    steps = draw_steps(draw)
    shapes = (
        ((4, 8), (8, 8), (8, 16)) if steps > _LONG else ((4, 8), (8, 16), (16, 16), (8, 16, 32))
    )
    spec = ConvNetSpec(
        channels=draw.choice(shapes),
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        batch_norm=draw.random() < 0.5,
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32) if steps > _LONG else (16, 32, 64)),
        total_steps=steps,
        label_noise=draw.choice((0.0, 0.0, draw.uniform(0.0, 0.3))),
        init_scale=log_uniform(draw, 0.7, 1.5),
    )
    size, n_train = draw.choice((8, 10, 14)), draw.choice((0, 0, 0, 600, 1500))
    return Task(DataSpec("mnist-5k", size=size, n_train=n_train), spec, seed=index)


def decoder(index: int) -> Task:
    """Small decoders on characters of text and on Markov chains; long runs are of small ones."""
    draw = random.Random(f"decoder-{index}")
    steps = draw_steps(draw)
    spec = DecoderSpec(
        width=draw.choice((16, 32) if steps > _LONG else (16, 32, 48, 64)),
        layers=draw.choice((1, 2) if steps > _LONG else (1, 2, 3)),
        heads=draw.choice((2, 4)),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((4, 8) if steps > _LONG else (4, 8, 16)),
        total_steps=steps,
        init_scale=log_uniform(draw, 0.7, 1.5),
    )
    context, seed = draw.choice((8, 16, 24)), draw.randrange(8)
    n_train = draw.choice((0, 0, 1000))
    if draw.random() < 0.5:
        data = DataSpec("python-docs", context=context, n_train=n_train)
    else:
        n_tokens = draw.choice((8, 16, 32))
        data = DataSpec("markov", n_classes=n_tokens, context=context, n_train=n_train, seed=seed)
    return Task(data, spec, seed=index)


def adapted(index: int) -> Task:
    """Fine-tuning of pretrained decoders on few and noisy batches of enciphered text."""
    draw = random.Random(f"adapted-{index}")
    width, layers = draw.choice(((32, 2), (64, 2), (64, 3)))
    rank = draw.choice((0, 2, 4, 8))
    spec = AdaptedDecoderSpec(
        width,
        layers,
        4,
        rank=rank,
        alpha=max(1, rank) * draw.choice((1.0, 2.0, 4.0)),
        optimizer=draw_optimizer(draw) if rank == 0 else draw_adam(draw, "adamw"),
        batch_size=draw.choice((1, 2, 4, 8)),
        total_steps=round(log_uniform(draw, 60, 1000)),
        init_scale=draw.choice((1.0, 1.0, 1.0, 2.0)) if rank else 1.0,
    )
    data = DataSpec(
        "python-docs",
        context=draw.choice((16, 24)),
        cipher=draw.choice((0.1, 0.2, 0.4, 0.8)),
        seed=draw.randrange(8),
        n_train=draw.choice((0, 0, 300, 1000)),
    )
    return Task(data, spec, seed=index)


def long(index: int) -> Task:
    """Small MLPs, of which the longest runs are."""
    draw = random.Random(f"long-{index}")
    spec = MLPSpec(
        hidden=(draw.choice((16, 32, 64)),) * draw.choice((1, 2)),
        activation=draw.choice(("relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32)),
        total_steps=draw_steps(draw),
        label_noise=draw.choice((0.0, draw.uniform(0.0, 0.3))),
        lr_multiplier=10 ** draw.uniform(-1, 1),
    )
    return Task(draw_data(draw), spec, seed=index)


def regression(index: int) -> Task:
    """MLPs, some with a bottleneck, that predict numbers; some can be predicted without error."""
    draw = random.Random(f"regression-{index}")
    wide = draw.choice((32, 64, 128))
    optimizer = draw_optimizer(draw)
    spec = RegressorSpec(
        hidden=draw.choice(((wide,), (wide, wide), (wide, wide // 4, wide), (wide // 4,))),
        activation=draw.choice(("relu", "tanh", "gelu")),
        optimizer=optimizer,
        batch_size=draw.choice((8, 16, 32, 64)),
        total_steps=round(log_uniform(draw, 50, 1500)),
        label_noise=draw.choice((0.0, 0.0, 0.0, draw.uniform(0.0, 0.3))),
        init_scale=log_uniform(draw, 0.7, 1.5),
        # The mean over many outputs makes gradients small.
        lr_multiplier=10 ** draw.uniform(0, 1.5) if optimizer.name == "sgd" else 1.0,
    )
    seed, n_train = draw.randrange(8), draw.choice((0, 0, 0, 600))
    kind = draw.choice(("halves", "codes", "codes", "teacher-outputs"))
    if kind == "teacher-outputs":
        inputs, outputs = draw.choice((4, 16, 32)), draw.choice((1, 2, 8))
        data = DataSpec(kind, projection=inputs, n_classes=outputs, n_train=n_train, seed=seed)
    elif kind == "codes":
        size, outputs = draw.choice((6, 10, 14)), draw.choice((8, 32, 96))
        data = DataSpec(kind, size=size, n_classes=outputs, n_train=n_train, seed=seed)
    else:
        data = DataSpec(kind, size=draw.choice((6, 10, 14)), n_train=n_train)
    return Task(data, spec, seed=index)


def scarce(index: int) -> Task:
    """MLPs on few examples of few features, as tables have them; most learn them by heart."""
    draw = random.Random(f"scarce-{index}")
    spec = MLPSpec(
        hidden=(draw.choice((16, 32, 64, 96)),) * draw.choice((1, 2, 2, 3)),
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        optimizer=draw_optimizer(draw),
        batch_size=draw.choice((8, 16, 32)),
        total_steps=round(log_uniform(draw, 50, 600)),
        label_noise=draw.choice((0.0, 0.0, draw.uniform(0.0, 0.2))),
    )
    n_train, seed = draw.choice((100, 200, 400)), draw.randrange(8)
    n_classes = draw.choice((2, 3, 5))
    if draw.random() < 0.3:
        name, inputs = "teacher", draw.choice((4, 8, 16))
    else:
        name, inputs = "mnist-5k", draw.choice((8, 16, 32))
    data = DataSpec(name, projection=inputs, n_classes=n_classes, n_train=n_train, seed=seed)
    return Task(data, spec, seed=index)


def easy(index: int) -> Task:
    """Models of a few classes of clean images, whose losses come close to zero."""
    draw = random.Random(f"easy-{index}")
    settings: dict[str, Any] = {
        "activation": draw.choice(("relu", "relu", "tanh", "gelu")),
        "optimizer": draw_optimizer(draw),
        "batch_size": draw.choice((16, 32, 64)),
        "total_steps": round(log_uniform(draw, 100, 1000)),
    }
    spec: RunSpec
    if draw.random() < 0.7:
        channels = draw.choice(((4, 8), (8, 16), (16, 16), (8, 16, 32)))
        spec = ConvNetSpec(channels=channels, batch_norm=draw.random() < 0.5, **settings)
    else:
        spec = MLPSpec((draw.choice((32, 64, 96)),) * draw.choice((1, 2, 2)), **settings)
    data = DataSpec(
        "mnist-5k",
        size=draw.choice((8, 10, 14)),
        n_classes=draw.choice((2, 3, 5, 8)),
        n_train=draw.choice((0, 0, 600)),
        seed=draw.randrange(8),
    )
    return Task(data, spec, seed=index)


def brief(index: int) -> Task:
    """Runs of 20 to 100 steps of all models."""
    draw = random.Random(f"brief-{index}")
    steps = round(log_uniform(draw, 20, 100))
    # Numbers that the other families hardly reach.
    task = draw.choice((plain, convnet, decoder, adapted, regression))(10**6 + index)
    return replace(task, spec=replace(task.spec, total_steps=steps))
