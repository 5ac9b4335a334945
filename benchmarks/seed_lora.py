"""The LC source's fine-tuning experiment in small: ``python benchmarks/seed_lora.py``.

LoRA on SmolLM2-135M, from household instructions to programs (VirtualHome), under constant, cosine
and linear schedules at the default and at their tuned peaks, and under the learned policy:
validation loss at half and at the end, ROUGE on test prompts, what the model forgot, wall-clock
time. Takes minutes on a GPU (``--device cuda``), hours on a CPU.
"""

from pathlib import Path

import tyro
from long_runs import LongRunsSettings, compare_long_runs

from lrenv.trainees.registry import build_task
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.training.finetune import language_metrics

ANSWERS = 24
SETTINGS = LongRunsSettings(
    Path("runs/seed_lora"), total_steps=200, peaks=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
)


def measure(trainee: SingleTrainee) -> dict[str, float]:
    """ROUGE and forgetting."""
    return language_metrics(trainee, "virtualhome", ANSWERS)


if __name__ == "__main__":
    settings = tyro.cli(LongRunsSettings, default=SETTINGS)
    task = build_task("lora-llm", settings.total_steps, OptimizerSpec("adamw"))
    compare_long_runs(task, settings, measure)
