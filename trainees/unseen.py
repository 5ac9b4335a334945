"""The declared test tasks: data and models that no policy is trained on.

No policy's training, selection or settings may look at them. The conditions of harsh tasks, but for
their 50,000 steps, are among those of the training family ``"rough"``, on other data.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lrenv.trainees.autoencoder import AutoencoderSpec
from lrenv.trainees.changing import ChangingMLPSpec
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.draws import log_uniform
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.resnet import ResNet18Spec
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task

_PER_FAMILY = 4


def unseen_tasks(heavy: bool = False) -> dict[str, Task]:
    """The tasks by name: four drawn by number of each family, so that nobody picks them.

    Args:
        heavy: Add ResNet-18 on Fashion-MNIST and LoRA on held-out titles of VirtualHome, whose
            tuned experts take hours.
    """
    tasks = {
        f"{family} {index}": draw(random.Random(f"unseen-{family}-{index}"))
        for family, draw in _FAMILIES.items()
        for index in range(_PER_FAMILY)
    }
    return tasks | (_heavy_tasks() if heavy else {})


def harsh_tasks() -> dict[str, Task]:
    """Conditions that are rare in training or beyond it, one at a time, on digits."""
    changes: dict[str, dict[str, Any]] = {
        "batches of 4": {"batch_size": 4},
        "batches of 512": {"batch_size": 512},
        "50 steps": {"total_steps": 50},
        "50,000 steps": {"total_steps": 50_000},
        "half of the labels random": {"label_noise": 0.5},
        "initial weights × 6": {"init_scale": 6.0},
    }
    optimizers = {"Adam": OptimizerSpec("adam"), "SGD": OptimizerSpec("sgd", 0.9)}
    tasks = {}
    for name, optimizer in optimizers.items():
        usual = MLPSpec((64, 64), optimizer=optimizer, batch_size=32, total_steps=400)
        for condition, change in changes.items():
            spec = replace(usual, **change)
            tasks[f"{condition}, {name}"] = Task(DataSpec("digits"), spec, 0)
        changing = ChangingMLPSpec((64, 64), optimizer=optimizer, batch_size=32, total_steps=400)
        tasks[f"classes renamed midway, {name}"] = Task(DataSpec("renamed-digits"), changing, 0)
    return tasks


def held_out_tasks(data: str = "mnist") -> list[Task]:
    """The declared test family of MLPs: 24 trainees on full-size images.

    They are drawn by number, so that nobody picks them. Input sizes and widths are outside the
    training families; depths, optimizer settings and run lengths partly so.
    """
    return [_full_size_mlp(index, data) for index in range(24)]


def _full_size_mlp(index: int, data: str) -> Task:
    draw = random.Random(f"held-out-{index}")
    depth = draw.choice((1, 1, 2, 2, 3, 4, 5))
    widths = (80, 112, 128, 160, 224, 288, 320) if depth < 3 else (80, 112, 128, 160)
    name = draw.choice(("sgd", "sgd", "adam", "adam", "adamw"))
    if name == "sgd":
        momentum, decay = draw.choice((0.0, 0.85, 0.9, 0.9)), draw.choice((0.0, 2e-4))
        optimizer = OptimizerSpec(name, momentum, weight_decay=decay)
    else:
        decay = draw.choice((0.01, 0.1)) if name == "adamw" else 0.0
        optimizer = OptimizerSpec(name, draw.choice((0.85, 0.9)), draw.choice((0.98, 0.999)), decay)
    spec = MLPSpec(
        hidden=(draw.choice(widths),) * depth,
        activation=draw.choice(("relu", "relu", "tanh", "gelu")),
        optimizer=optimizer,
        batch_size=draw.choice((20, 24, 40, 50, 80)),
        total_steps=round(log_uniform(draw, 120, 1000)),
        label_noise=draw.choice((0.0, 0.0, 0.0, 0.15)),
    )
    return Task(DataSpec(data), spec, seed=0)


def _heavy_tasks() -> dict[str, Task]:
    resnet = ResNet18Spec(optimizer=OptimizerSpec("sgd", 0.9), batch_size=64, total_steps=300)
    lora = LoRASpec(batch_size=2, total_steps=100)
    titles = DataSpec("virtualhome-titles", context=128, tokenizer=lora.model)
    return {
        "ResNet-18 on Fashion-MNIST": Task(DataSpec("fashion-mnist"), resnet, 0),
        "LoRA on VirtualHome titles": Task(titles, lora, 0),
    }


def _fashion_mlp(draw: random.Random) -> Task:
    spec = MLPSpec(
        hidden=(draw.choice((100, 150, 300)),) * draw.choice((1, 2)),
        activation=draw.choice(("relu", "gelu")),
        optimizer=_optimizer(draw),
        batch_size=draw.choice((50, 100)),
        total_steps=_steps(draw, 150, 800),
    )
    return Task(DataSpec("fashion-mnist"), spec, 0)


def _digits_convnet(draw: random.Random) -> Task:
    spec = ConvNetSpec(
        channels=draw.choice(((6, 12), (12, 24), (10, 20, 20))),
        activation=draw.choice(("relu", "gelu")),
        batch_norm=draw.random() < 0.5,
        optimizer=_optimizer(draw),
        batch_size=draw.choice((20, 50)),
        total_steps=_steps(draw, 150, 1000),
    )
    return Task(DataSpec("digits"), spec, 0)


def _table_mlp(draw: random.Random) -> Task:
    spec = MLPSpec(
        hidden=(draw.choice((20, 40, 80)),) * draw.choice((1, 2, 3)),
        activation=draw.choice(("relu", "tanh")),
        optimizer=_optimizer(draw),
        batch_size=draw.choice((10, 30)),
        total_steps=_steps(draw, 100, 500),
    )
    return Task(DataSpec(draw.choice(("breast-cancer", "wine"))), spec, 0)


def _autoencoder(draw: random.Random) -> Task:
    spec = AutoencoderSpec(
        hidden=draw.choice(((60, 20), (40, 10), (50,))),
        activation=draw.choice(("relu", "tanh", "gelu")),
        optimizer=_optimizer(draw),
        batch_size=draw.choice((20, 50)),
        total_steps=_steps(draw, 150, 800),
    )
    return Task(DataSpec("digits"), spec, 0)


def _source_decoder(draw: random.Random) -> Task:
    spec = DecoderSpec(
        width=draw.choice((40, 80)),
        layers=draw.choice((1, 2)),
        heads=draw.choice((2, 4)),
        optimizer=_optimizer(draw),
        batch_size=draw.choice((6, 12)),
        total_steps=_steps(draw, 150, 800),
    )
    return Task(DataSpec("python-source", context=draw.choice((12, 32))), spec, 0)


def _rmsprop_mlp(draw: random.Random) -> Task:
    task = _fashion_mlp(draw)
    optimizer = OptimizerSpec("rmsprop", draw.choice((0.0, 0.9)), 0.99)
    return replace(task, spec=replace(task.spec, optimizer=optimizer), data=DataSpec("digits"))


def _optimizer(draw: random.Random) -> OptimizerSpec:
    name = draw.choice(("sgd", "adam", "adamw"))
    if name == "sgd":
        return OptimizerSpec(name, draw.choice((0.0, 0.9)))
    return OptimizerSpec(name, weight_decay=0.05 if name == "adamw" else 0.0)


def _steps(draw: random.Random, least: int, most: int) -> int:
    return round(log_uniform(draw, least, most))


_FAMILIES: dict[str, Callable[[random.Random], Task]] = {
    "MLP on Fashion-MNIST": _fashion_mlp,
    "convnet on digits": _digits_convnet,
    "MLP on a table": _table_mlp,
    "autoencoder on digits": _autoencoder,
    "decoder on source code": _source_decoder,
    "MLP under RMSprop": _rmsprop_mlp,
}
