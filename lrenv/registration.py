"""Registers the environments with gymnasium when imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "lrenv/MLP-MNIST-v0": {"trainee": "mlp-mnist"},
    "lrenv/MLP-MNIST-Classic-v0": {
        "trainee": "mlp-mnist-classic",
        "preset": "classic",
        "total_steps": 1200,
    },
    "lrenv/ResNet18-MNIST-v0": {"trainee": "resnet18-mnist"},
    "lrenv/Decoder-Text-v0": {"trainee": "decoder-text"},
    "lrenv/LoRA-LLM-v0": {"trainee": "lora-llm", "optimizer": "adamw"},
}

_LOCKSTEP = ("lrenv/MLP-MNIST-v0", "lrenv/MLP-MNIST-Classic-v0", "lrenv/Decoder-Text-v0")

for _id, _kwargs in _ENVIRONMENTS.items():
    gym.register(
        _id,
        entry_point="lrenv.env:LRScheduleEnv",
        vector_entry_point="lrenv.vector:make_vector_env" if _id in _LOCKSTEP else None,
        kwargs=_kwargs,
    )
