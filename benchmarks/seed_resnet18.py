"""ResNet-18 on MNIST: ``python benchmarks/seed_resnet18.py``.

Constant, cosine and linear schedules at the default and at their tuned peaks, and the learned
policy, on paired seeds: validation loss at half and at the end, test loss and accuracy, time.
"""

from pathlib import Path

import tyro
from long_runs import LongRunsSettings, compare_long_runs

from lrenv.trainees.registry import build_task
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec

SETTINGS = LongRunsSettings(
    Path("runs/seed_resnet18"),
    total_steps=300,
    seeds=3,
    peaks=(1e-3, 1e-4, 3e-4, 3e-3, 1e-2),
    all_seeds=True,
)


def measure(trainee: SingleTrainee) -> dict[str, float]:
    """Test loss and accuracy."""
    loss, accuracy = trainee.evaluate("test")
    return {"test_loss": float(loss), "test_accuracy": float(accuracy)}


if __name__ == "__main__":
    settings = tyro.cli(LongRunsSettings, default=SETTINGS)
    task = build_task("resnet18-mnist", settings.total_steps, OptimizerSpec("adam"))
    compare_long_runs(task, settings, measure)
