"""Time that PPO takes to a validation ratio, end to end: ``python benchmarks/ppo_speed.py``.

On the classic MLP task, from the same untrained policy, with the same number of episodes in an
update and the same step size: (a) runs in lockstep, read as whole runs by the causal Transformer
(``lrenv.training.outcome_ppo``), and (b) stable-baselines3's PPO over a single environment. Both
are judged by the same rollouts without noise, on seeds that neither trains on; judging is not
timed. The single environment stops where it has taken ``patience`` times as long.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from rich.table import Table
from stable_baselines3 import PPO
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lrenv.env import LRScheduleEnv
from lrenv.observation import FEATURES
from lrenv.policies.network import Head
from lrenv.policies.sb3 import TransformerExtractor, extract_actor, policy_kwargs
from lrenv.trainees.registry import build_task
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import search_experts
from lrenv.training.generalist import summary
from lrenv.training.outcome_ppo import OutcomePPO, evaluate_actor
from lrenv.training.progress import console
from lrenv.training.runfolder import write_json
from lrenv.training.settings import GeneralistSettings

_TRAINEE = "mlp-mnist-classic"
_PPO = GeneralistSettings(
    group=16,
    groups_per_update=1,
    critic_warmup=2,
    target_kl=0.02,
    actor_lr=3e-4,
    average_decay=0.0,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    ratio: float = 1.1
    """Validation loss over the tuned expert's at which a policy is done, geometric mean."""
    total_steps: int = 600
    """Length of a run in optimizer steps."""
    optimizer: str = "adam"
    """Optimizer of the trainee."""
    updates: int = 200
    """PPO updates at most."""
    patience: float = 10.0
    """Multiple of the time in lockstep that the single environment is given."""
    seeds: int = 4
    """Seeds to train on in lockstep, and as many others to judge by."""
    output: Path = Path("runs/ppo_speed.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Measure both, print the table, write the JSON file."""
    torch.set_num_threads(1)
    task = build_task(_TRAINEE, settings.total_steps, OptimizerSpec.usual(settings.optimizer))
    trained, judged = (
        [replace(task, seed=seed) for seed in range(first, first + settings.seeds)]
        for first in (0, 1000)
    )
    for each in (*trained, *judged):
        search_experts(each)
    torch.manual_seed(0)
    start = Head("scale-free", len(FEATURES))
    paths: dict[str, Iterator[tuple[float, Head]]] = {
        "lockstep": lockstep(copy.deepcopy(start), trained, settings),
        "single environment": single(start, trained[0], settings),
    }
    rows, limit = {}, float("inf")
    for name, path in paths.items():
        rows[name] = curve = follow(path, judged, settings.ratio, limit)
        limit = settings.patience * curve[-1][0]
    write_json(settings.output, rows)
    table = Table("path", "updates", "seconds", "ratio reached", "×")
    for name, curve in rows.items():
        seconds, ratio = curve[-1]
        share = f"{seconds / rows['lockstep'][-1][0]:.1f}"
        table.add_row(name, str(len(curve) - 1), f"{seconds:.1f}", f"{ratio:.3f}", share)
    console.print(table)


def follow(
    path: Iterator[tuple[float, Head]], judged: list[Task], ratio: float, limit: float
) -> list[tuple[float, float]]:
    """Seconds spent and ratio reached after each update, until the ratio or the limit."""
    spent, curve = 0.0, []
    for seconds, actor in path:
        spent += seconds
        curve.append((spent, summary(evaluate_actor(actor, judged))["geometric_mean"]))
        console.print(f"{spent:8.1f} s: {curve[-1][1]:.3f}")
        if curve[-1][1] <= ratio or spent > limit:
            break
    return curve


def lockstep(actor: Head, tasks: list[Task], settings: Settings) -> Iterator[tuple[float, Head]]:
    """Yield the seconds of each update and the policy behind it; first the start."""
    yield 0.0, actor
    with TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ppo = OutcomePPO(actor, _PPO, writer)
        for k in range(settings.updates):
            began = time.perf_counter()
            ppo.update([tasks[k % len(tasks)]])
            yield time.perf_counter() - began, actor


def single(start: Head, task: Task, settings: Settings) -> Iterator[tuple[float, Head]]:
    """Yield the seconds of each update and the policy behind it; first the start."""
    env = LRScheduleEnv(
        _TRAINEE,
        reward="outcome",
        reference=search_experts(task).reference,
        total_steps=settings.total_steps,
        optimizer=settings.optimizer,
    )
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=_PPO.actor_lr,
        n_steps=_PPO.group * env.controller.plan.n_decisions,
        batch_size=_PPO.group * env.controller.plan.n_decisions // 2,
        n_epochs=_PPO.epochs,
        gamma=1.0,
        gae_lambda=_PPO.gae_lambda,
        clip_range=_PPO.clip,
        target_kl=_PPO.target_kl,
        policy_kwargs=policy_kwargs("scale-free", len(FEATURES), _PPO.action_std),
        seed=0,
        device="cpu",
    )
    policy = model.policy
    assert isinstance(policy.pi_features_extractor, TransformerExtractor)
    assert isinstance(policy.action_net, nn.Linear)
    policy.pi_features_extractor.trunk.load_state_dict(start.trunk.state_dict())
    policy.action_net.load_state_dict(start.head.state_dict())
    yield 0.0, extract_actor(policy, "scale-free")
    for _ in range(settings.updates):
        began = time.perf_counter()
        model.learn(model.n_steps, reset_num_timesteps=False)
        yield time.perf_counter() - began, extract_actor(policy, "scale-free")


if __name__ == "__main__":
    main(tyro.cli(Settings))
