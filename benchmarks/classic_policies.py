"""The source's table, made anew: ``python benchmarks/classic_policies.py``.

The eight classic policies and ``mlp`` on the trainee of the source (MLP 48-48-10 on a random
projection of MNIST, Adam, batches of 256), beside the experts they were cloned from at the source's
peak of 1e-4, an LR-matched constant for each policy, and the tuned expert.
"""

from pathlib import Path

import tyro

from lrenv.training.evaluate import evaluate
from lrenv.training.settings import EvaluateSettings

EXPERTS = ("linear", "cosine", "polynomial", "all")

SETTINGS = EvaluateSettings(
    policies=(*(f"{expert}-{stage}" for expert in EXPERTS for stage in ("bc", "ppo")), "mlp"),
    trainee="mlp-mnist-classic",
    optimizers=("adam",),
    total_steps=1200,
    peak=1e-4,
    output=Path("runs/classic_policies"),
)

if __name__ == "__main__":
    evaluate(tyro.cli(EvaluateSettings, default=SETTINGS))
