"""Trainees by name. A new one is one function and one line in ``TRAINEES``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lrenv.errors import InputError
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.resnet import ResNet18Spec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task, load_data

_PROJECTION_SEED = 0


def mlp_mnist(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """The 2-layer MLP 784-128-10 on MNIST, batches of 64."""
    spec = MLPSpec((128,), optimizer=optimizer, batch_size=64, total_steps=total_steps)
    return Task(DataSpec("mnist"), spec, seed)


def mlp_mnist_classic(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """The trainee of the source: MLP 48-48-10 on randomly projected MNIST, batches of 256."""
    spec = MLPSpec((48,), optimizer=optimizer, batch_size=256, total_steps=total_steps)
    return Task(DataSpec("mnist", projection=48, seed=_PROJECTION_SEED), spec, seed)


def convnet_mnist(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """Two convolutions of 8 and 16 channels with batch norm, on MNIST, batches of 32."""
    spec = ConvNetSpec(
        (8, 16), batch_norm=True, optimizer=optimizer, batch_size=32, total_steps=total_steps
    )
    return Task(DataSpec("mnist"), spec, seed)


def resnet18_mnist(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """ResNet-18 on MNIST, batches of 64."""
    spec = ResNet18Spec(optimizer=optimizer, batch_size=64, total_steps=total_steps)
    return Task(DataSpec("mnist"), spec, seed)


def decoder_text(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """A decoder of 6 layers, width 768 and 4 heads on characters of Python's reference, 8 × 64."""
    spec = DecoderSpec(768, 6, 4, optimizer=optimizer, batch_size=8, total_steps=total_steps)
    return Task(DataSpec("python-docs", context=64), spec, seed)


def decoder_text_small(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """A decoder of 2 layers and width 64 on characters of the Python reference, 16 × 32."""
    spec = DecoderSpec(64, 2, 4, optimizer=optimizer, batch_size=16, total_steps=total_steps)
    return Task(DataSpec("python-docs", context=32), spec, seed)


def lora_llm(total_steps: int, optimizer: OptimizerSpec, seed: int) -> Task:
    """LoRA of rank 8 on SmolLM2-135M, from household instructions to programs, batches of 4."""
    spec = LoRASpec(optimizer=optimizer, total_steps=total_steps)
    return Task(DataSpec("virtualhome", context=128, tokenizer=spec.model), spec, seed)


TRAINEES: dict[str, Callable[[int, OptimizerSpec, int], Task]] = {
    "mlp-mnist": mlp_mnist,
    "mlp-mnist-classic": mlp_mnist_classic,
    "convnet-mnist": convnet_mnist,
    "resnet18-mnist": resnet18_mnist,
    "decoder-text": decoder_text,
    "decoder-text-small": decoder_text_small,
    "lora-llm": lora_llm,
}


def build_task(
    name: str, total_steps: int = 1000, optimizer: OptimizerSpec | None = None, seed: int = 0
) -> Task:
    """Return the task of a trainee by name.

    Args:
        name: A key of ``TRAINEES``.
        total_steps: Length of the run in optimizer steps.
        optimizer: The optimizer, Adam by default.
        seed: Seed of weights and data order.
    """
    if name not in TRAINEES:
        raise InputError(f"Expected a trainee among {', '.join(TRAINEES)}; got {name!r}.")
    return TRAINEES[name](total_steps, optimizer or OptimizerSpec("adam"), seed)


def build_trainee(task: Task, device: torch.device | str = "cpu") -> SingleTrainee:
    """Build the trainee of a task on a device."""
    return SingleTrainee(task.spec, load_data(task.data), task.seed, device)
