"""The single environment."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import lrenv.registration  # noqa: F401
from lrenv import InputError, LRScheduleEnv
from lrenv.episode import DIVERGED_REWARD
from lrenv.observation import BOUNDS, FEATURES
from lrenv.policies.sb3 import extract_actor, policy_kwargs
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.language_model import TINY
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.resnet import ResNet18Spec
from lrenv.trainees.tasks import DataSpec, Task

IDS = ["lrenv/MLP-MNIST-v0", "lrenv/MLP-MNIST-Classic-v0"]


def episode(env: gym.Env, seed: int, actions: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    obs, _ = env.reset(seed=seed)
    seen, rewards = [obs], []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(np.array([action], dtype=np.float32))
        assert env.observation_space.contains(obs)
        assert not truncated
        seen.append(obs)
        rewards.append(reward)
        if terminated:
            break
    return seen, rewards


def test_the_space_bounds_each_feature_of_a_decision():
    space = gym.make("lrenv/MLP-MNIST-v0").observation_space

    np.testing.assert_array_equal(space.high.reshape(80, -1), np.float32([BOUNDS] * 80))
    np.testing.assert_array_equal(space.low, -space.high)
    assert set(BOUNDS) == {5.0, 10.0}


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("reward", ["smoothness", "improvement", "outcome"])
def test_both_checkers_pass_without_a_warning(env_id: str, reward: str) -> None:
    env = gym.make(env_id, total_steps=60, reward=reward, reference=0.5).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        sb3_check_env(env)


SMALL = {
    "lrenv/ResNet18-MNIST-v0": (DataSpec("digits"), ResNet18Spec(batch_size=8, total_steps=20)),
    "lrenv/Decoder-Text-v0": (
        DataSpec("python-docs", context=8),
        DecoderSpec(16, 2, 2, batch_size=4, total_steps=20),
    ),
    "lrenv/LoRA-LLM-v0": (
        DataSpec("babyai", context=96, tokenizer=TINY),
        LoRASpec(model=TINY, batch_size=2, total_steps=20),
    ),
}


@pytest.fixture
def few_missions(monkeypatch):
    monkeypatch.setattr("lrenv.trainees.instructions._EPISODES", 40)


@pytest.mark.parametrize("env_id", SMALL)
@pytest.mark.usefixtures("few_missions")
def test_environments_of_larger_trainees_pass_both_checkers_and_train(env_id: str) -> None:
    data, spec = SMALL[env_id]
    env = gym.make(env_id, trainee=Task(data, spec, 0)).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="transformers")
        check_env(env)
        sb3_check_env(env)
    _, rewards = episode(env, 0, np.full(40, 0.2))
    assert env.controller.step == 20
    assert np.isfinite(rewards).all()
    assert env.window.loss.shape == (1, 20)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["lrenv/ResNet18-MNIST-v0", "lrenv/Decoder-Text-v0"])
def test_environments_of_larger_trainees_train_at_full_size(env_id: str) -> None:
    env = gym.make(env_id, total_steps=20)
    episode(env, 0, np.full(40, 0.4))
    assert env.unwrapped.controller.step == 20


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episode_bit_for_bit(env_id: str) -> None:
    actions = np.random.default_rng(0).uniform(-0.3, 0.5, 100)
    env = gym.make(env_id, total_steps=60)
    first, second, other = (episode(env, seed, actions) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert first[1] == second[1]
    assert first[1] != other[1]


def test_episode_ends_at_the_last_optimizer_step() -> None:
    env = LRScheduleEnv("mlp-mnist-classic", total_steps=50)
    seen, _ = episode(env, 0, np.zeros(200))
    assert len(seen) - 1 == env.controller.plan.n_decisions
    assert env.controller.step == 50
    assert env.window.loss.shape == (1, 50)
    assert env.window.grad_norm.shape == (1, 50, 2)


def test_divergence_terminates_with_its_reward() -> None:
    env = LRScheduleEnv("mlp-mnist-classic", total_steps=200, optimizer="sgd")
    seen, rewards = episode(env, 0, np.ones(200))
    assert rewards[-1] == DIVERGED_REWARD
    assert env.controller.step < 200
    assert np.isfinite(seen[-1]).all()


@pytest.mark.parametrize("action", [0.0, 1.0], ids=["full length", "diverged"])
def test_a_step_outside_of_an_episode_is_refused(action: float) -> None:
    env = LRScheduleEnv("mlp-mnist-classic", total_steps=40, optimizer="sgd")
    refused = pytest.raises(gym.error.ResetNeeded, match=r"Expected a call of reset\(\) before")
    with refused:
        env.step(np.zeros(1, np.float32))
    _, rewards = episode(env, 0, np.full(200, action))
    assert (rewards[-1] == DIVERGED_REWARD) == (action == 1.0)
    with refused:
        env.step(np.zeros(1, np.float32))
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))


def test_the_optimizer_named_is_the_optimizer_used() -> None:
    for name, expected in (("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")):
        env = LRScheduleEnv("mlp-mnist-classic", total_steps=50, optimizer=name)
        assert type(env.trainee.optimizer).__name__ == expected


def test_a_higher_lr_trains_faster_than_a_tiny_one() -> None:
    losses = {}
    for rise in (0.0, 1.0):
        env = LRScheduleEnv("mlp-mnist-classic", total_steps=60)
        episode(env, 0, np.array([rise, rise] + [0.0] * 100))
        losses[rise] = float(env.window.loss[0, -5:].mean())
    assert losses[1.0] < 0.8 * losses[0.0]


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"trainee": "resnet"}, "Expected a trainee among mlp-mnist"),
        ({"preset": "raw"}, "Expected preset to be one of"),
        ({"reward": "loss"}, "Expected a reward among smoothness"),
        ({"reward": "outcome"}, "Expected the tuned expert's validation loss as reference"),
        ({"total_steps": 0}, "Expected total_steps"),
        ({"optimizer": "lion"}, "Expected an optimizer among sgd"),
    ],
)
def test_bad_arguments(kwargs: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        LRScheduleEnv(**kwargs)


def test_sb3_ppo_trains_the_scale_free_policy_as_it_stands() -> None:
    env = LRScheduleEnv("mlp-mnist-classic", total_steps=30)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=16,
        batch_size=8,
        n_epochs=1,
        policy_kwargs=policy_kwargs("scale-free", len(FEATURES), 0.1),
        seed=0,
        device="cpu",
    )
    before = extract_actor(model.policy, "scale-free").head.weight.clone()
    model.learn(32)
    actor = extract_actor(model.policy, "scale-free")
    assert not before.equal(actor.head.weight)
    obs, _ = env.reset(seed=0)
    action, _ = model.predict(obs, deterministic=True)
    token = env.controller.observer.tokens[-1]
    ours = actor.step(token, []).detach().clamp(-1, 1).numpy()
    np.testing.assert_allclose(action, ours, atol=1e-5)
