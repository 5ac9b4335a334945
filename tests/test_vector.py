"""The vector environments beside the single one."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO

from lrenv import InputError, LRScheduleEnv, vector
from lrenv.episode import DIVERGED_REWARD
from lrenv.observation import FEATURES
from lrenv.policies.sb3 import policy_kwargs
from lrenv.trainees.families import training_task
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.vector import LRScheduleVectorEnv, RunSlots
from lrenv.vector_sb3 import LRScheduleVecEnv

STEPS = (30, 30, 44, 30)
OPTIMIZERS = ("sgd", "adam", "sgd", "sgd")


def make_tasks() -> list:
    """Three shapes side by side: 30 steps of SGD twice, of Adam, and 44 steps of SGD."""
    return [
        build_task("mlp-mnist-classic", steps, OptimizerSpec(optimizer))
        for steps, optimizer in zip(STEPS, OPTIMIZERS, strict=True)
    ]


def single_env(slot: int) -> LRScheduleEnv:
    return LRScheduleEnv("mlp-mnist-classic", total_steps=STEPS[slot], optimizer=OPTIMIZERS[slot])


@pytest.mark.parametrize("kind", ["gymnasium", "sb3"])
def test_vector_and_single_environments_agree_over_resets(kind: str) -> None:
    seeds = [11, 12, 13, 14]
    actions = np.random.default_rng(0).uniform(-0.2, 0.4, (70, 4, 1)).astype(np.float32)
    if kind == "gymnasium":
        vector = LRScheduleVectorEnv(make_tasks())
        obs, _ = vector.reset(seed=seeds)
    else:
        vector = LRScheduleVecEnv(make_tasks())
        vector._seeds = list(seeds)
        obs = vector.reset()
    singles = [single_env(slot) for slot in range(4)]
    for slot, env in enumerate(singles):
        expected, _ = env.reset(seed=seeds[slot])
        np.testing.assert_allclose(obs[slot], expected, atol=2e-4)
    over, episodes = [False] * 4, 0
    for step in actions:
        obs, rewards, dones, *rest = vector.step(step)
        for slot, env in enumerate(singles):
            if over[slot]:  # gymnasium: this step resets and ignores the action
                expected, _ = env.reset()
                assert rewards[slot] == 0.0
                over[slot] = False
            else:
                expected, reward, over[slot], _, _ = env.step(step[slot])
                episodes += over[slot]
                assert rewards[slot] == pytest.approx(reward, rel=1e-3)
            assert dones[slot] == over[slot]
            if kind == "sb3" and over[slot]:
                info = rest[0][slot]
                np.testing.assert_allclose(info["terminal_observation"], expected, atol=2e-2)
                assert info["TimeLimit.truncated"] is False
                expected, _ = env.reset()
                over[slot] = False
            np.testing.assert_allclose(obs[slot], expected, atol=2e-2)
    assert episodes > 6


@pytest.mark.parametrize("kind", ["MLP-MNIST", "MLP-MNIST-Classic", "Decoder-Text"])
def test_gymnasium_makes_them_in_lockstep(kind: str) -> None:
    vector = gym.make_vec(f"lrenv/{kind}-v0", num_envs=2, total_steps=20, optimizer="sgd")
    assert isinstance(vector.unwrapped, LRScheduleVectorEnv)
    single = gym.make(f"lrenv/{kind}-v0", total_steps=20, optimizer="sgd")
    assert vector.single_observation_space == single.observation_space


def test_a_trainee_of_each_kind_is_made_for_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(vector, "build_trainee", lambda t: made.append(t) or build_trainee(t))
    RunSlots([*make_tasks(), *make_tasks()])
    assert len(made) == 3


def test_autoreset_mode_is_declared() -> None:
    vector = LRScheduleVectorEnv(make_tasks())
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)


def test_a_run_that_diverges_starts_anew_while_the_others_go_on() -> None:
    task = build_task("mlp-mnist-classic", 200, OptimizerSpec("sgd"))
    vector = LRScheduleVectorEnv([task, task])
    vector.reset(seed=[0, 1])
    over = np.zeros(2, bool)
    for _ in range(60):
        _, rewards, over, _, _ = vector.step(np.array([[1.0], [0.0]], np.float32))
        if over.any():
            break
    assert over.tolist() == [True, False]
    assert rewards[0] == DIVERGED_REWARD
    for _ in range(3):
        obs, rewards, over, _, infos = vector.step(np.zeros((2, 1), np.float32))
        assert not over.any()
    assert np.isfinite(obs).all()
    assert infos["step"][0] < infos["step"][1]


def test_trainee_seeds_and_reset_mask() -> None:
    vector = LRScheduleVectorEnv(make_tasks())
    first, _ = vector.reset(seed=0, options={"trainee_seed": [5, 5, 5, 5]})
    np.testing.assert_array_equal(first[0], first[3])
    vector.step(np.zeros((4, 1), np.float32))
    mask = np.array([True, False, False, False])
    obs, _ = vector.reset(options={"reset_mask": mask, "trainee_seed": [6, 0, 0, 0]})
    tokens = obs.reshape(4, -1, len(FEATURES))[:, :, 0].sum(1)
    assert tokens.tolist() == [1, 2, 2, 2]


def test_sb3_ppo_runs_on_it() -> None:
    vector = LRScheduleVecEnv(make_tasks()[:2] * 2)
    kwargs = policy_kwargs("scale-free", len(FEATURES), 0.1)
    model = PPO(
        "MlpPolicy", vector, n_steps=32, batch_size=64, n_epochs=1, policy_kwargs=kwargs, seed=0
    )
    model.learn(128)
    assert model.num_timesteps == 128
    assert len(model.ep_info_buffer) >= 4
    assert max(row["l"] for row in model.ep_info_buffer) == 27


def test_it_starts_with_a_reset_whose_seed_may_be_of_numpy() -> None:
    envs = [LRScheduleVectorEnv(make_tasks()) for _ in range(2)]
    with pytest.raises(gym.error.ResetNeeded, match="Expected a call of reset"):
        envs[0].step(np.zeros((4, 1), np.float32))
    first, second = (env.reset(seed=s)[0] for env, s in zip(envs, (3, np.int64(3)), strict=True))
    assert (first == second).all()


def test_no_tasks() -> None:
    with pytest.raises(InputError, match="Expected at least one task"):
        LRScheduleVectorEnv([])


def test_the_outcome_is_related_to_each_tasks_own_reference() -> None:
    asked = []

    def reference(task: Task) -> float:
        asked.append(task)
        return 0.5 + task.seed

    tasks = make_tasks()
    vector = LRScheduleVectorEnv(tasks, reward="outcome", reference=reference)
    vector.reset(seed=0, options={"trainee_seed": [0, 1, 2, 3]})
    assert sorted(t.seed for t in asked) == [0, 1, 2, 3]
    assert {t.spec for t in asked} == {t.spec for t in tasks}

    earned: dict[int, float] = {}
    while len(earned) < len(tasks):
        _, rewards, dones, _, infos = vector.step(np.zeros((4, 1), np.float32))
        for slot in np.flatnonzero(dones).tolist():
            expected = -np.log(infos["val_loss"][slot] / (0.5 + slot))
            earned.setdefault(slot, rewards[slot])
            assert rewards[slot] == pytest.approx(expected, rel=1e-5)
        assert (rewards[~dones] == 0).all()


def test_models_of_all_kinds_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrenv.trainees.adapted._STEPS", 40)
    tasks = [training_task(i, "general") for i in range(8)]
    tasks = [replace(t, spec=replace(t.spec, total_steps=30)) for t in tasks]
    vector = LRScheduleVectorEnv(tasks)
    vector.reset(seed=0)

    for _ in range(20):
        _, rewards, _, _, infos = vector.step(np.zeros((8, 1), np.float32))
        assert np.isfinite(rewards).all()
    assert {t.spec.kind for t in tasks} == {"mlp", "convnet", "decoder", "adapted-decoder"}
    assert (infos["step"] > 0).all()
