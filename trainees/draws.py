"""What the families of tasks draw at random in the same way."""

from __future__ import annotations

import math
import random

from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec


def log_uniform(draw: random.Random, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform between those of two bounds."""
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def draw_steps(draw: random.Random) -> int:
    """Draw the length of a run that may be long, in optimizer steps."""
    return round(log_uniform(draw, 100, 5000))


def draw_data(draw: random.Random) -> DataSpec:
    """Draw a teacher or smaller MNIST-5k, some with few examples."""
    kind = draw.random()
    n_train = draw.choice((0, 0, 0, 600, 1500))
    seed = draw.randrange(8)
    if kind < 0.25:
        return DataSpec(
            "teacher",
            projection=draw.choice((16, 32, 64)),
            n_classes=draw.choice((2, 4, 10)),
            n_train=n_train,
            seed=seed,
        )
    if kind < 0.45:
        size = draw.choice((32, 48, 64))
        return DataSpec("mnist-5k", projection=size, n_train=n_train, seed=seed)
    return DataSpec("mnist-5k", size=draw.choice((7, 14, 14)), n_train=n_train)


def draw_optimizer(draw: random.Random) -> OptimizerSpec:
    """Draw SGD, Adam or AdamW, with momentum and weight decay."""
    name = draw.choice(("sgd", "sgd", "adam", "adam", "adamw"))
    if name == "sgd":
        momentum = draw.choice((0.0, 0.8, 0.9, 0.9, 0.95))
        return OptimizerSpec("sgd", momentum, weight_decay=draw.choice((0.0, 0.0, 1e-4, 5e-4)))
    return draw_adam(draw, name)


def draw_adam(draw: random.Random, name: str) -> OptimizerSpec:
    """Draw β₂ and weight decay of Adam, which has none, or AdamW."""
    decay = 0.0 if name == "adam" else 10 ** draw.uniform(-3, -0.5)
    return OptimizerSpec(name, 0.9, draw.choice((0.95, 0.99, 0.999, 0.999)), decay)
