"""Rollouts of a task in lockstep, and what is kept of them.

Shape legend: r runs, t decisions, f features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrenv.action import MAX_CHANGE
from lrenv.controller import Controller, run_interval
from lrenv.observation import FEATURES, ScaleFreeObserver, columns_of
from lrenv.policies.network import Head
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.tasks import Task, load_data

VALIDATE_EVERY = 4
"""Decisions between two validation losses."""

VALIDATION_EXAMPLES = 256
"""Examples of the validation split that the policy's signal is computed on."""

VAL_COLUMNS = columns_of("val_")

Choose = Callable[[Tensor, Controller], Tensor]
"""From the newest token ``(r, f)`` and the controller to the actions ``(r,)``."""


@dataclass(frozen=True)
class Rollout:
    """Runs of one task.

    Attributes:
        tokens: Observations, one token a decision, ``(r, t, f)``.
        actions: Actions taken, before clipping, ``(r, t)``.
        lrs: LR after each decision, ``(r, t)``.
        final: Final validation loss on the whole split, ``(r,)``; not finite where diverged.
    """

    tokens: Tensor
    actions: Tensor
    lrs: Tensor
    final: Tensor


def drop_signals(n_runs: int, generator: torch.Generator) -> Tensor:
    """Draw a mask ``(r, f)`` that hides signals some jobs do not give.

    Half the runs see no validation loss, a quarter does not know its epochs, a tenth its optimizer.
    """
    mask = torch.ones(n_runs, len(FEATURES))
    for start, share in (("val_", 0.5), ("optimizer_", 0.1), ("epoch", 0.25)):
        unseen = torch.rand(n_runs, generator=generator) < share
        mask[unseen.nonzero(), columns_of(start)] = 0.0
    return mask


def roll_out(task: Task, n_runs: int, choose: Choose, mask: Tensor | None = None) -> Rollout:
    """Train ``n_runs`` runs of a task under a policy.

    Args:
        task: The task; all runs share its seed.
        n_runs: How many runs.
        choose: The policy.
        mask: Signals that each run is given, ``(r, f)``; all by default.
    """
    trainee = BatchedTrainee([task.spec] * n_runs, load_data(task.data), [task.seed] * n_runs)
    controller = Controller(
        task.spec.total_steps, trainee.traits, n_runs, steps_per_epoch=trainee.steps_per_epoch
    )
    observer = controller.observer
    assert isinstance(observer, ScaleFreeObserver)
    actions: list[Tensor] = []
    lrs: list[Tensor] = []
    validates = mask is None or bool(mask[:, VAL_COLUMNS].any())
    while not controller.done:
        run_interval(trainee, controller)
        due = validates and len(actions) % VALIDATE_EVERY == 0
        val = trainee.evaluate("val", VALIDATION_EXAMPLES)[0] if due else None
        controller.close(val)
        if controller.deciding:
            if mask is not None:
                observer.tokens[-1] = observer.tokens[-1] * mask
            action = choose(observer.tokens[-1], controller)
            lrs.append(controller.act(action).lr)
            actions.append(action)
    tokens = torch.stack(observer.tokens[: len(actions)], 1)
    final = trainee.evaluate("val")[0]
    return Rollout(tokens, torch.stack(actions, 1), torch.stack(lrs, 1), final)


class NetworkChoice:
    """Chooses by an actor, with Gaussian noise that is correlated in time.

    A constant shift of the actions shifts the whole LR curve, whose effect on the outcome is much
    larger than that of white noise, which the policy undoes at the next decision (compare
    Eberhard et al. 2023 on pink noise). The second half of the runs has the negative noise of the
    first: near the best schedule both directions cost the same, which then does not blur what the
    other runs say (mirrored sampling, Salimans et al. 2017).

    Args:
        actor: The actor.
        std: Deviation of the noise at any one decision.
        memory: Its correlation at successive decisions, of an AR(1) process.
        generator: Source of the noise; without one there is none.
    """

    def __init__(
        self,
        actor: Head,
        std: float = 0.0,
        memory: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self._actor, self._std, self._memory, self._generator = actor, std, memory, generator
        self._cache: list[list[Tensor]] = []
        self._noise: Tensor | None = None

    @torch.no_grad()
    def __call__(self, token: Tensor, controller: Controller) -> Tensor:
        """Return actions ``(r,)`` for the newest token ``(r, f)``."""
        mean = self._actor.step(token, self._cache)
        if self._generator is None:
            return mean
        half = torch.randn((len(mean) + 1) // 2, generator=self._generator)
        fresh = torch.cat([half, -half])[: len(mean)]
        if self._noise is None:
            self._noise = fresh
        else:
            self._noise = self._memory * self._noise + (1 - self._memory**2) ** 0.5 * fresh
        return mean + self._std * self._noise


def recovery_label(
    log_schedule: Tensor, controller: Controller, offset: Tensor | float = 0.0
) -> Tensor:
    """The action that brings each run to e^offset of the expert's next LR, ``(r,)``.

    DAgger's label (Ross et al. 2011): log of the tuned expert's LR at this time over the current.

    Args:
        log_schedule: Log LR of the expert at every step, ``(total_steps,)``.
        controller: A controller that waits for a decision.
        offset: What is added to the expert's log LR, ``(r,)``.
    """
    start = controller.step
    end = controller.plan.next_end(start)
    target = torch.logsumexp(log_schedule[start:end], 0) - torch.tensor(float(end - start)).log()
    return ((target + offset - torch.log(controller.lr)) / MAX_CHANGE).clamp(-1.0, 1.0)
