"""stable-baselines3's vector environment of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnv,
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)

from lrenv.trainees.tasks import Task
from lrenv.vector import RunSlots


class LRScheduleVecEnv(VecEnv):
    """Training runs side by side for SB3; an environment that is over resets at once.

    The last observation of a run is in ``infos[i]["terminal_observation"]``, its return and length
    in ``infos[i]["episode"]``.

    Args:
        tasks: The task of each environment.
        kwargs: Arguments of :class:`lrenv.vector.RunSlots`.
    """

    def __init__(self, tasks: Sequence[Task], **kwargs: Any) -> None:
        self._core = RunSlots(tasks, **kwargs)
        self.render_mode: str | None = None
        super().__init__(len(tasks), self._core.observation_space, self._core.action_space)
        self._actions = np.zeros((len(tasks), 1), np.float32)
        self._returns = np.zeros(len(tasks))
        self._lengths = np.zeros(len(tasks), np.int64)

    def reset(self) -> VecEnvObs:
        """Start new runs everywhere."""
        for slot, seed in enumerate(self._seeds):
            if seed is not None:
                self._core.seed(slot, seed)
        self._core.reset(range(self.num_envs), self._options)
        self._returns[:], self._lengths[:] = 0.0, 0
        self._reset_seeds()
        self._reset_options()
        return self._core.observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions, ``(e, 1)``."""
        self._actions = np.asarray(actions, np.float32)

    def step_wait(self) -> VecEnvStepReturn:
        """Decide in every environment."""
        rewards, over, rows = self._core.step(self._actions)
        infos = [rows[slot] for slot in range(self.num_envs)]
        self._returns += rewards
        self._lengths += 1
        finished = np.flatnonzero(over).tolist()
        for slot in finished:
            infos[slot] |= {
                "terminal_observation": self._core.observations[slot].copy(),
                "TimeLimit.truncated": False,
                "episode": {"r": float(self._returns[slot]), "l": int(self._lengths[slot])},
            }
        if finished:
            self._core.reset(finished)
            self._returns[finished], self._lengths[finished] = 0.0, 0
        return self._core.observations.copy(), rewards, over, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the vector environment for each index."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the runs are no objects of their own."""
        raise AttributeError(f"Runs in lockstep have no attribute {attr_name!r} of their own.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: the runs are no objects of their own."""
        raise AttributeError(f"Runs in lockstep have no method {method_name!r} of their own.")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each index: nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]
