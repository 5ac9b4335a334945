"""The policies of the source: clones of an expert, fine-tuned by stable-baselines3's PPO.

Source: the project proposal "Learned Learning Rate Scheduler": MSE on log LR, then PPO with clip
0.2, GAE 0.92, 5 epochs and gradient clip 0.4 on the smoothness reward.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.action import classic_action
from lrenv.env import LRScheduleEnv
from lrenv.files import make_folder
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.policies.frozen import save_policy
from lrenv.policies.network import ClassicTransformer
from lrenv.policies.sb3 import TransformerExtractor, extract_actor, policy_kwargs
from lrenv.trainees.registry import build_task
from lrenv.trainees.tasks import load_data
from lrenv.training.progress import console, track
from lrenv.training.runfolder import (
    check_settings,
    read_state,
    read_tensors,
    write_state,
    write_tensors,
)
from lrenv.training.settings import ClassicSettings, check_least, check_seed
from lrenv.window import WINDOW

TRAINEE = "mlp-mnist-classic"

# Brings returns of the smoothness reward near 1, where the critic starts.
_REWARD_SCALE = 0.02

Stage = Literal["bc", "ppo"]


def train_classic(settings: ClassicSettings) -> Path:
    """Clone and fine-tune; a run that was stopped goes on from its run folder.

    Returns:
        The path of the last exported policy's card.

    Raises:
        InputError: The run folder belongs to other settings, or cannot be written, or nothing can
            be seeded with the seed.
    """
    check_seed(settings.seed)
    check_least(settings, demonstrations=1, clone_steps=0, critic_steps=0, batch_size=2)
    check_least(settings, n_envs=1, n_epochs=1, total_timesteps=0)
    folder = make_folder(settings.output / settings.expert)
    check_settings(folder, settings, free={"output", "total_timesteps"}, data=_data_name())
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    model = build_ppo(settings, folder)
    path = folder / "state.pt"
    if path.exists():
        state = read_state(path)
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps = state["num_timesteps"]
        model.set_random_seed(settings.seed + model.num_timesteps)
    else:
        clone_expert(model, demonstrations(folder, settings), settings)
        export(model, folder, settings, "bc")
        _save(model, path)
    per_update = settings.n_envs * model.n_steps
    n_updates = settings.total_timesteps // per_update
    for _ in track(range(model.num_timesteps // per_update, n_updates), "PPO updates"):
        model.learn(per_update, reset_num_timesteps=False, tb_log_name="ppo")
        _save(model, path)
    if n_updates < 1:
        return folder / f"{settings.expert}-bc.json"  # the model may be PPO's of an earlier start
    return export(model, folder, settings, "ppo")


def make_env(settings: ClassicSettings) -> LRScheduleEnv:
    """Make the environment of the source."""
    return LRScheduleEnv(TRAINEE, "classic", "smoothness", total_steps=settings.total_steps)


def build_ppo(settings: ClassicSettings, folder: Path) -> PPO:
    """Build SB3's PPO with the classic Transformers on environments side by side."""

    def make() -> gym.Env[Any, Any]:
        env = TransformReward(make_env(settings), lambda r: _REWARD_SCALE * float(r))
        return Monitor(env)

    env = DummyVecEnv([make] * settings.n_envs)
    probe = make_env(settings)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=probe.controller.plan.n_decisions,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        max_grad_norm=settings.max_grad_norm,
        target_kl=settings.target_kl,
        ent_coef=0.0,
        policy_kwargs=policy_kwargs("classic", _n_features(probe), settings.action_std),
        tensorboard_log=str(folder / "tensorboard"),
        seed=settings.seed,
        device="cpu",
    )


def demonstrations(folder: Path, settings: ClassicSettings) -> dict[str, Tensor]:
    """Run the experts and keep what the environment showed, one file in the run folder.

    Returns:
        ``"obs"`` ``(m, w * d)``, ``"actions"`` ``(m,)`` and discounted ``"returns"`` ``(m,)``.
    """
    path = folder / "demonstrations.safetensors"
    if not path.exists():
        kinds = TUNED_KINDS if settings.expert == "all" else (settings.expert,)
        env = make_env(settings)
        parts = [
            _demonstrate(env, kinds[i % len(kinds)], settings, seed=settings.seed * 1000 + i)
            for i in track(range(settings.demonstrations), "Demonstrations")
        ]
        write_tensors(path, {k: torch.cat([p[k] for p in parts]) for k in parts[0]})
    return read_tensors(path)


def _demonstrate(
    env: LRScheduleEnv, kind: str, settings: ClassicSettings, seed: int
) -> dict[str, Tensor]:
    rates = schedule(kind, settings.total_steps, settings.peak)
    obs, _ = env.reset(seed=seed)
    seen, actions, rewards = [], [], []
    done = False
    while not done:
        step = env.controller.step
        end = env.controller.plan.next_end(step)
        action = classic_action(sum(rates[step:end]) / (end - step))
        seen.append(torch.from_numpy(obs))
        actions.append(action)
        obs, reward, done, _, _ = env.step(np.array([action], dtype=np.float32))
        rewards.append(_REWARD_SCALE * reward)
    returns, carry = [0.0] * len(rewards), 0.0
    for i in reversed(range(len(rewards))):
        carry = rewards[i] + settings.gamma * carry
        returns[i] = carry
    return {
        "obs": torch.stack(seen),
        "actions": torch.tensor(actions),
        "returns": torch.tensor(returns),
    }


def clone_expert(model: PPO, data: dict[str, Tensor], settings: ClassicSettings) -> None:
    """Fit the actor by MSE on log LR, and warm the critic up on the returns."""
    policy = model.policy
    actor, critic = policy.pi_features_extractor, policy.vf_features_extractor
    jobs = (
        ("Cloning", actor, policy.action_net, data["actions"], settings.clone_steps),
        ("Critic", critic, policy.value_net, data["returns"], settings.critic_steps),
    )
    for name, extractor, head, target, steps in jobs:
        assert isinstance(extractor, TransformerExtractor)
        assert isinstance(head, nn.Linear)
        assert isinstance(extractor.trunk, ClassicTransformer)
        rows = data["obs"].reshape(-1, extractor.n_features)
        extractor.trunk.mean.copy_(rows.mean(0))
        extractor.trunk.std.copy_(rows.std(0).clamp_min(1e-3))
        with torch.no_grad():
            head.bias.fill_(float(target.mean()))
        error = _regress(extractor, head, data["obs"], target, steps, settings, name)
        console.print(f"{name}: mean squared error {error:.5f}")


def _regress(
    extractor: TransformerExtractor,
    head: nn.Linear,
    obs: Tensor,
    target: Tensor,
    steps: int,
    settings: ClassicSettings,
    name: str,
) -> float:
    params = [*extractor.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=settings.clone_lr)
    generator = torch.Generator().manual_seed(settings.seed)
    error = math.nan
    for step in track(range(steps), name):
        for group in optimizer.param_groups:
            group["lr"] = settings.clone_lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        index = torch.randint(len(obs), (settings.batch_size,), generator=generator)
        loss = F.mse_loss(head(extractor(obs[index]))[:, 0], target[index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, settings.max_grad_norm)
        optimizer.step()
        error = loss.item()
    return error


def export(model: PPO, folder: Path, settings: ClassicSettings, stage: Stage) -> Path:
    """Write the actor as a frozen policy ``<expert>-<stage>``."""
    recipe = asdict(settings)
    recipe.pop("output")
    card = {
        "preset": "classic",
        "made_by": f"lrenv train classic --expert {settings.expert}",
        "stage": stage,
        "settings": recipe,
        "training_families": f"{TRAINEE} under Adam, {_data_name()}",
        "ppo_timesteps": model.num_timesteps,
    }
    actor = extract_actor(model.policy, "classic")
    return save_policy(folder, f"{settings.expert}-{stage}", actor, card)


def _data_name() -> str:
    return load_data(build_task(TRAINEE).data).name


def _n_features(env: LRScheduleEnv) -> int:
    assert env.observation_space.shape is not None
    return env.observation_space.shape[0] // WINDOW


def _save(model: PPO, path: Path) -> None:
    state = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
    }
    write_state(path, state)
