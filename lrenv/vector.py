"""Vector environments: many training runs side by side, over batched trainees.

Runs of one shape that start together train in lockstep, in one group; groups of different shapes,
optimizers and episode lengths stand side by side. A run that diverges leaves its group, and starts
anew in another.

Shape legend: e environments, n size of an observation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from lrenv.controller import Preset
from lrenv.env import as_task, draw_run_seed, observation_space, outcome_info
from lrenv.episode import Episode
from lrenv.errors import InputError
from lrenv.rewards import Reward, build_reward
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Options = dict[str, Any]


@dataclass
class _Group:
    """Runs in lockstep; a run that is over has no slot."""

    episode: Episode[BatchedTrainee]
    slots: list[int | None]


class RunSlots:
    """The core of the vector environments: slots that each hold a run of their own task.

    Args:
        tasks: The task of each slot; its seed is replaced at every reset.
        preset: Preset of observation and action.
        reward: Name of a reward, or a function from ``RewardContext`` to a float.
        reference: The tuned expert's validation loss, for the reward ``"outcome"``: a number for
            all, or a function of the task with the run's seed, called at every reset. A search of
            its tuned expert costs 39 runs unless it is cached: draw seeds from a few by
            ``options["trainee_seed"]``.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        preset: Preset = "scale-free",
        reward: str | Reward = "smoothness",
        reference: float | Callable[[Task], float] | None = None,
    ) -> None:
        if not tasks:
            raise InputError("Expected at least one task, got none; name a task a slot.")
        self._tasks, self._preset = list(tasks), preset
        self._reward, self._reference = reward, reference
        self._generators = [seeding.np_random()[0] for _ in tasks]
        self._groups: list[_Group] = []
        if isinstance(reward, str):  # refuses an unknown one, or one without its reference
            build_reward(reward, 1.0 if callable(reference) else reference)
        kinds = dict.fromkeys(replace(task, seed=0) for task in tasks)
        spaces = [observation_space(preset, build_trainee(task)) for task in kinds]
        shapes = {str(space.shape) for space in spaces}
        if len(shapes) > 1:
            raise InputError(
                f"Expected observations of one shape, got {', '.join(sorted(shapes))}; under the "
                "classic preset all trainees need the same number of layers."
            )
        self.observation_space = spaces[0]
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observations: Floats = np.zeros(
            (len(tasks), *(self.observation_space.shape or ())), np.float32
        )

    def seed(self, slot: int, seed: int) -> None:
        """Seed the random numbers of a slot, as a single environment's ``reset(seed=...)``."""
        self._generators[slot] = seeding.np_random(seed)[0]

    def reset(self, slots: Iterable[int], options: Sequence[Options | None] | None = None) -> None:
        """Start new runs in slots; those of one shape form a group."""
        shapes: dict[Any, list[tuple[int, Task]]] = defaultdict(list)
        for slot in slots:
            self._drop(slot)
            seed = draw_run_seed(self._generators[slot], options[slot] if options else None)
            task = replace(self._tasks[slot], seed=seed)
            shapes[task.data, task.spec.shape].append((slot, task))
        for members in shapes.values():
            self._start(members)

    def step(self, actions: Floats) -> tuple[Floats, Bools, dict[int, dict[str, Any]]]:
        """Take a decision in every slot that holds a run.

        Args:
            actions: One action a slot, ``(e, 1)``.

        Returns:
            Rewards ``(e,)``, runs that are over ``(e,)``, and the infos of the slots stepped.
        """
        rewards = np.zeros(len(self._tasks), np.float32)
        over = np.zeros(len(self._tasks), np.bool_)
        infos: dict[int, dict[str, Any]] = {}
        for group in self._groups:
            rows = [0 if slot is None else slot for slot in group.slots]
            outcome = group.episode.step(torch.from_numpy(actions[rows, 0]))
            observations = group.episode.observation().numpy()
            for row, slot in enumerate(group.slots):
                if slot is None:
                    continue
                self.observations[slot] = observations[row]
                rewards[slot] = outcome.rewards[row]
                over[slot] = bool(outcome.terminated[row])
                infos[slot] = outcome_info(outcome, row, group.episode.controller.step)
        for finished in np.flatnonzero(over).tolist():
            self._drop(finished)
        return rewards, over, infos

    def _drop(self, slot: int) -> None:
        for group in self._groups:
            group.slots = [None if s == slot else s for s in group.slots]
        self._groups = [g for g in self._groups if any(s is not None for s in g.slots)]

    def _reward_of(self, task: Task) -> Reward:
        if not isinstance(self._reward, str):
            return self._reward
        reference = self._reference
        if callable(reference):
            reference = reference(task) if self._reward == "outcome" else None
        return build_reward(self._reward, reference)

    def _start(self, members: Sequence[tuple[int, Task]]) -> None:
        slots, tasks = zip(*members, strict=True)
        trainee = BatchedTrainee(
            [t.spec for t in tasks], load_data(tasks[0].data), [t.seed for t in tasks]
        )
        episode = Episode(trainee, self._preset, [self._reward_of(t) for t in tasks])
        episode.start()
        self.observations[list(slots)] = episode.observation().numpy()
        self._groups.append(_Group(episode, list(slots)))


def make_vector_env(
    num_envs: int = 1,
    trainee: str | Task = "mlp-mnist",
    total_steps: int = 1000,
    optimizer: str | OptimizerSpec = "adam",
    **kwargs: Any,
) -> LRScheduleVectorEnv:
    """Make environments of one trainee, what ``gymnasium.make_vec`` calls.

    Args:
        num_envs: How many.
        trainee: As of :class:`lrenv.env.LRScheduleEnv`, likewise ``total_steps`` and ``optimizer``.
        total_steps: Length of the runs.
        optimizer: Their optimizer.
        kwargs: Arguments of :class:`RunSlots`.
    """
    return LRScheduleVectorEnv([as_task(trainee, total_steps, optimizer)] * num_envs, **kwargs)


class LRScheduleVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """Gymnasium's vector environment of training runs; resets at the next step.

    Args:
        tasks: The task of each environment.
        kwargs: Arguments of :class:`RunSlots`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, tasks: Sequence[Task], **kwargs: Any) -> None:
        self._core = RunSlots(tasks, **kwargs)
        self.num_envs = len(tasks)
        self.single_observation_space = self._core.observation_space
        self.single_action_space = self._core.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over: Bools = np.zeros(self.num_envs, np.bool_)
        self._started = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Options | None = None,
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new runs everywhere, or where ``options["reset_mask"]``, ``(e,)``, says.

        Args:
            seed: One seed an environment; a single one is counted up.
            options: ``"trainee_seed"``: seeds of the runs themselves, one an environment.
        """
        if isinstance(seed, (int, np.integer)):
            seed = [int(seed) + i for i in range(self.num_envs)]
        for slot, value in enumerate(seed or []):
            if value is not None:
                self._core.seed(slot, value)
        options = options or {}
        mask = options.get("reset_mask", np.ones(self.num_envs, np.bool_))
        own = options.get("trainee_seed")
        each = None if own is None else [{"trainee_seed": s} for s in own]
        self._core.reset(np.flatnonzero(mask).tolist(), each)
        self._over[mask] = False
        self._started = True
        return self._core.observations.copy(), {}

    def step(
        self, actions: Floats
    ) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Decide in every environment; those that were over start anew and ignore the action."""
        if not self._started:
            raise gym.error.ResetNeeded("Expected a call of reset() before step(), got none.")
        fresh = np.flatnonzero(self._over).tolist()
        rewards, over, rows = self._core.step(np.asarray(actions, np.float32))
        if fresh:
            self._core.reset(fresh)
        self._over = over
        infos: dict[str, Any] = {}
        for slot, row in rows.items():
            infos = self._add_info(infos, row, slot)
        truncated = np.zeros(self.num_envs, np.bool_)
        return self._core.observations.copy(), rewards, over.copy(), truncated, infos
