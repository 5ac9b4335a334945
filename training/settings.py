"""Settings of the training commands; plain dataclasses, so that ``lrenv --help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GeneralistSettings:
    """Train a general policy: tuned experts, cloning with recovery labels, PPO on the outcome."""

    output: Path = Path("runs/generalist")
    """Run folder; a run that was stopped goes on from there."""
    hours: float = 1.2
    """Budget of machine time for PPO, in hours over all restarts; 0 keeps the clone."""
    seed: int = 0
    """Seed of everything random but the tasks."""
    tasks: int = 240
    """Training tasks, each with its tuned expert."""
    held_out: int = 24
    """Further tasks of the training families on which the export is selected."""
    group: int = 16
    """Rollouts of one and the same task."""
    rounds: int = 3
    """Rounds of cloning; each adds rollouts of the policy to the demonstrations."""
    clone_steps: int = 1500
    """Optimizer steps of cloning a round."""
    clone_batch: int = 64
    """Runs in a batch of cloning."""
    clone_lr: float = 1e-3
    """Peak LR of cloning."""
    groups_per_update: int = 4
    """Tasks rolled out for one PPO update."""
    critic_warmup: int = 8
    """PPO updates in which only the critic learns."""
    updates: int = 100_000
    """PPO updates at most."""
    evaluate_every: int = 30
    """PPO updates between two evaluations on the held-out tasks."""
    epochs: int = 4
    """Passes over the rollouts of one update."""
    clip: float = 0.2
    """Clip range of PPO."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation; the discount is 1."""
    kl_clone: float = 0.01
    """Weight of the KL term to the clone."""
    target_kl: float = 0.03
    """Mean KL to the last policy at which an update ends."""
    action_std: float = 0.125
    """Deviation of the actions while training; ±1 is the largest change of log LR."""
    actor_lr: float = 2e-4
    """LR of the actor in PPO."""
    critic_lr: float = 5e-4
    """LR of the critic in PPO."""
