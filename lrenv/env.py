"""The single environment: one training run, one decision a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

import lrenv.registration  # noqa: F401 - names the environments
from lrenv.classic_observation import CLASSIC_CLIP
from lrenv.controller import Controller, Preset
from lrenv.decisions import MAX_DECISIONS
from lrenv.episode import Episode, Outcome
from lrenv.observation import BOUNDS
from lrenv.rewards import Reward, build_reward
from lrenv.statistics import group_layers
from lrenv.trainees.base import Trainee
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.window import WINDOW, StepWindow

Observation = NDArray[np.float32]


class LRScheduleEnv(gym.Env[Observation, NDArray[np.float32]]):
    """Choose the learning rate of a training run.

    ## Description
    An episode is one training run of a trainee: a model, its data, loss and optimizer. Each
    environment step is a decision, which sets the LR for the next decision interval, a number of
    optimizer steps. The policy sees signals of the run, never the weights: a partially observable
    Markov decision process. The whole window of the last 512 optimizer steps (losses, LRs, layer
    gradient norms, LC sensitivities) is at hand as :attr:`window`.

    ## Action Space
    ``Box(-1, 1, (1,), float32)``. Scale-free: the change of log LR as a share of 2, the largest
    change at one decision. Classic: log LR itself, −1 for 1e-6 and 1 for 1e-1.

    ## Observation Space
    | preset | shape | content |
    |---|---|---|
    | ``scale-free`` | ``(80 * len(FEATURES),)`` | one token of ``lrenv.observation.FEATURES`` a
      decision, 80 tokens at most, zeros behind the last; within
      ``lrenv.observation.BOUNDS`` |
    | ``classic`` | ``(512 * (layers + 4),)`` | left fraction, train loss, val loss, layer gradient
      norms and log10 LR of the last 512 optimizer steps, left-padded with the first |

    Both are flattened in C order.

    ## Rewards
    ``smoothness`` (the source's), ``improvement`` (Subramanian et al. 2023), or ``outcome``: minus
    the log ratio of the final validation loss to the tuned expert's. See ``lrenv.rewards``. A
    diverging run gets −10 once. Test data is never read.

    ## Starting State
    Fresh weights and data order, from the seed. The first optimizer steps are taken at a tiny LR
    and find the unit of the LR: the one at which an update is 0.03 % of the weights (scale-free),
    or are one step at 1e-6 (classic).

    ## Episode End
    ``terminated`` at the last optimizer step, as the remaining fraction is observed, or when the
    loss is not finite or 20 times the first. Never ``truncated``.

    ## Arguments
    ```python
    gymnasium.make("lrenv/MLP-MNIST-v0", total_steps=1000, optimizer="adam", reward="smoothness")
    ```
    * ``trainee``: name of a trainee, see ``lrenv.trainees.registry.TRAINEES``; or a ``Task``, which
      sets model, data, optimizer and length itself.
    * ``preset``: ``"scale-free"`` or ``"classic"``.
    * ``reward``: name of a reward, or a function from ``RewardContext`` to a float.
    * ``reference``: the tuned expert's validation loss, for the reward ``"outcome"``.
    * ``total_steps``: length of the run in optimizer steps.
    * ``optimizer``: ``"sgd"``, ``"adam"``, ``"adamw"`` or ``"rmsprop"``, see
      ``OptimizerSpec.usual``, or an ``OptimizerSpec``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        trainee: str | Task = "mlp-mnist",
        preset: Preset = "scale-free",
        reward: str | Reward = "smoothness",
        reference: float | None = None,
        total_steps: int = 1000,
        optimizer: str | OptimizerSpec = "adam",
    ) -> None:
        self._task = as_task(trainee, total_steps, optimizer)
        self._preset = preset
        self._reward = build_reward(reward, reference) if isinstance(reward, str) else reward
        self._episode = self._new_episode(self._task.seed)
        self._over = True
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = observation_space(preset, self.trainee)

    @property
    def trainee(self) -> SingleTrainee:
        """The trainee of the episode."""
        return self._episode.trainee

    @property
    def controller(self) -> Controller:
        """The controller of the episode."""
        return self._episode.controller

    @property
    def window(self) -> StepWindow:
        """The last 512 optimizer steps."""
        return self.controller.observer.window

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a new training run.

        Args:
            seed: Seed of the environment's random numbers, from which the run's are drawn.
            options: ``{"trainee_seed": int}`` sets the seed of the run itself.
        """
        super().reset(seed=seed)
        run_seed = draw_run_seed(self.np_random, options)
        self._episode = self._new_episode(run_seed)
        self._episode.start()
        self._over = False
        return self._observation(), {"lr": float(self.controller.lr), "trainee_seed": run_seed}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Set the LR by ``action``, ``(1,)``, and train for an interval."""
        if self._over:
            raise gym.error.ResetNeeded("Expected a call of reset() before step(), got none.")
        outcome = self._episode.step(torch.as_tensor(action, dtype=torch.float32).reshape(1))
        info = outcome_info(outcome, 0, self.controller.step)
        reward, self._over = float(outcome.rewards), bool(outcome.terminated)
        return self._observation(), reward, self._over, False, info

    def _new_episode(self, seed: int) -> Episode[SingleTrainee]:
        trainee = build_trainee(replace(self._task, seed=seed))
        return Episode(trainee, self._preset, [self._reward])

    def _observation(self) -> Observation:
        return self._episode.observation()[0].numpy().astype(np.float32, copy=False)


def observation_space(preset: Preset, trainee: Trainee) -> gym.Space[Observation]:
    """The flat space of a preset's observations of one run of a trainee."""
    if preset == "classic":
        layers = group_layers([p.shape[1:] for p in trainee.parameters()])[-1] + 1
        high = np.full(WINDOW * (layers + 4), CLASSIC_CLIP, np.float32)
    else:
        high = np.tile(np.array(BOUNDS, np.float32), MAX_DECISIONS)
    space: Any = spaces.Box(-high, high, dtype=np.float32)
    return cast("gym.Space[Observation]", space)


def as_task(trainee: str | Task, total_steps: int, optimizer: str | OptimizerSpec) -> Task:
    """The task of a named trainee, or the task that is given, as it is."""
    if not isinstance(trainee, str):
        return trainee
    spec = OptimizerSpec.usual(optimizer) if isinstance(optimizer, str) else optimizer
    return build_task(trainee, total_steps, spec)


def draw_run_seed(generator: np.random.Generator, options: dict[str, Any] | None) -> int:
    """Draw the seed of a run, or take the one that the options name."""
    drawn = int(generator.integers(2**31))
    return int((options or {}).get("trainee_seed", drawn))


def outcome_info(outcome: Outcome, row: int, step: int) -> dict[str, Any]:
    """What the environments tell beside observation and reward, for one run."""
    return {
        "lr": float(outcome.lr[row]),
        "step": step,
        "train_loss": float(outcome.train_loss[row]),
        "val_loss": float(outcome.val_loss[row]),
        "diverged": bool(outcome.diverged[row]),
    }
