"""Small jobs under ``LearnedLR``, which several tests train."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from lrenv import LearnedLR
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy, load_policy, save_policy
from lrenv.policies.network import Head

STEPS = 60


def make_policy(folder: Path, preset: str = "scale-free") -> FrozenPolicy:
    """A policy with random weights of a size that makes it act."""
    torch.manual_seed(0)
    actor = Head(preset, len(FEATURES) if preset == "scale-free" else 6)
    with torch.no_grad():
        actor.head.bias.fill_(-0.05)  # so that no LR is too high
    return load_policy(save_policy(folder, f"random-{preset}", actor, {"preset": preset}))


def small_job(lr: float = 1e-3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


Job = tuple[nn.Module, torch.optim.Optimizer, LearnedLR]


def scheduled(policy: FrozenPolicy, total_steps: int | None = STEPS) -> Job:
    model, optimizer = small_job()
    return model, optimizer, LearnedLR(optimizer, total_steps, policy)


def optimizer_steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int = 1) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().mean().backward()
        optimizer.step()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LearnedLR | SimpleNamespace,
    steps: range,
) -> list[float]:
    lrs = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return lrs
