"""PPO on the outcome of whole runs (Schulman et al. 2017), fine-tuning a clone.

A group of runs of one and the same task shares initialisation and batches, so that differences
between their outcomes come from the schedules alone: the return of a run is minus the log of its
final validation loss, cut at 2 above the group's best and centred in its group. No tuned expert is
needed, so that every update can draw new tasks, none of which the actor knows by heart. The causal
Transformer reads a whole run at once, which makes an update as cheap as cloning; the PPO of
stable-baselines3, which trains the classic policies, reads every decision's window anew.

Shape legend: r runs, t decisions, f features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from lrenv.decisions import MAX_DECISIONS
from lrenv.observation import FEATURES
from lrenv.policies.network import Head
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import FLOOR, search_experts
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.rollout import (
    VAL_COLUMNS,
    NetworkChoice,
    Rollout,
    drop_signals,
    roll_out,
)
from lrenv.training.runfolder import read_state, write_state
from lrenv.training.settings import GeneralistSettings

WORST_RETURN = -2.0


@dataclass(frozen=True)
class Batch:
    """Rollouts of several groups, padded to the same length.

    Attributes:
        tokens: Observations, ``(r, t, f)``.
        actions: Actions before clipping, ``(r, t)``.
        mask: 1 for real decisions, ``(r, t)``.
        returns: Return of each run, centred in its group, ``(r,)``.
        group: The group of each run, ``(r,)``.
        gap: Log ratio of the final loss to that of the group's best run, at most 2, ``(r,)``.
    """

    tokens: Tensor
    actions: Tensor
    mask: Tensor
    returns: Tensor
    group: Tensor
    gap: Tensor


def log_ratios(final: Tensor, reference: float) -> Tensor:
    """Log of final losses over one to compare with; infinite where diverged.

    Neither is taken for less than ``FLOOR``.
    """
    ratio = torch.log(final.clamp_min(FLOOR) / max(reference, FLOOR))
    return torch.nan_to_num(ratio, torch.inf, torch.inf)


def join_groups(groups: Iterable[Rollout]) -> Batch:
    """Pad and stack groups of rollouts."""
    parts: list[Batch] = []
    for number, rollout in enumerate(groups):
        n_runs, t, f = rollout.tokens.shape
        tokens = torch.zeros(n_runs, MAX_DECISIONS, f)
        actions, mask = torch.zeros(2, n_runs, MAX_DECISIONS)
        tokens[:, :t], actions[:, :t], mask[:, :t] = rollout.tokens, rollout.actions, 1.0
        best = torch.nan_to_num(rollout.final, torch.inf).amin().item()
        gap = log_ratios(rollout.final, best).clamp_max(-WORST_RETURN)
        group = torch.full((n_runs,), number)
        parts.append(Batch(tokens, actions, mask, gap.mean() - gap, group, gap))
    names = ("tokens", "actions", "mask", "returns", "group", "gap")
    return Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def advantages(values: Tensor, returns: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates with one reward at the end and no discount, ``(r, t)``."""
    out = torch.zeros_like(values)
    carry = torch.zeros_like(returns)
    following = returns
    for t in reversed(range(values.shape[1])):
        real = mask[:, t] > 0
        delta = following - values[:, t]
        carry = torch.where(real, delta + lam * carry, carry)
        out[:, t] = torch.where(real, carry, 0.0)
        following = torch.where(real, values[:, t], following)
    return out


def centre_in_groups(
    gains: Tensor, group: Tensor, floor: float = 0.02, typical: float = 0.04
) -> Tensor:
    """Take the group's mean at each decision off the advantages, and even out their scales.

    What the critic misjudges about a task is the same for all runs of a group and falls out. Each
    group is divided by the root of its deviation: it counts for more where schedules matter more,
    but not for so much that all is learned from a few tasks.

    Args:
        gains: Advantages, ``(r, t)``, 0 behind the end of a run; a group's runs are equally long.
        group: The group of each run, ``(r,)``.
        floor: Least deviation, so that groups without differences stay small.
        typical: Deviation that becomes 1.
    """
    out = torch.empty_like(gains)
    for number in group.unique():
        rows = gains[group == number]
        real = (rows != 0).any(0)
        rows = rows - rows.mean(0)
        deviation = rows[:, real].square().mean().sqrt().clamp_min(floor)
        out[group == number] = rows / (typical * deviation).sqrt()
    return out


class OutcomePPO:
    """Fine-tunes an actor on the outcome of runs.

    Args:
        actor: The clone; trained in place.
        settings: The settings.
        writer: TensorBoard's writer.
        workers: Who rolls out the groups.
    """

    def __init__(
        self,
        actor: Head,
        settings: GeneralistSettings,
        writer: SummaryWriter,
        workers: Workers = IN_PROCESS,
    ) -> None:
        self.actor, self.settings, self._writer, self._workers = actor, settings, writer, workers
        self._clone = copy.deepcopy(actor).requires_grad_(False)
        self.average = copy.deepcopy(actor).requires_grad_(False)
        self.critic = Head("scale-free", actor.n_features)
        # It warms up by itself; Adam's first steps would leave a policy that is nearly right.
        self._actor_opt = torch.optim.RAdam(
            actor.parameters(),
            settings.actor_lr,
            (0.9, 0.99),
            eps=1e-5,
            weight_decay=0.01,
            decoupled_weight_decay=True,
        )
        self._critic_opt = torch.optim.AdamW(self.critic.parameters(), settings.critic_lr)
        self.updates = 0

    def update(self, tasks: Sequence[Task], left: float = 1.0) -> float:
        """Roll out a group on each task and learn from them.

        Args:
            tasks: The tasks.
            left: Fraction of the budget that is left, which scales the actor's LR.

        Returns:
            The mean log ratio of the final losses to the best ones of the groups.
        """
        for group in self._actor_opt.param_groups:
            group["lr"] = self.settings.actor_lr * (0.1 + 0.9 * left)
        generator = torch.Generator().manual_seed(self.settings.seed * 10**7 + self.updates)
        batch = self._collect(tasks, generator)
        learn_actor = self.updates >= self.settings.critic_warmup
        losses = self._learn(batch, generator, learn_actor)
        self.updates += 1
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.actor.parameters(), strict=True):
                mean.lerp_(now, 1 - self.settings.average_decay)
        losses["charts/gap"] = batch.gap.mean().item()
        losses["charts/worst_share"] = (batch.gap >= -WORST_RETURN).float().mean().item()
        for name, value in losses.items():
            self._writer.add_scalar(name, value, self.updates)
        return losses["charts/gap"]

    def state_dict(self) -> dict[str, object]:
        """Return everything that is needed to go on."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {
            "updates": self.updates
        }

    def load(self, path: Path) -> dict[str, Any]:
        """Take back a state that was written to a file, and return it."""
        state = read_state(path)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.updates = state["updates"]
        return state

    def save(self, path: Path, **extra: object) -> None:
        """Write the state to a file, with further plain values."""
        write_state(path, {**self.state_dict(), **extra})

    def _parts(self) -> dict[str, Head | torch.optim.Optimizer]:
        return {
            "actor": self.actor,
            "clone": self._clone,
            "average": self.average,
            "critic": self.critic,
            "actor_opt": self._actor_opt,
            "critic_opt": self._critic_opt,
        }

    def _collect(self, tasks: Sequence[Task], generator: torch.Generator) -> Batch:
        # The longest first, so that no worker is left alone with one.
        tasks = sorted(tasks, key=lambda task: -task.spec.total_steps)
        # A seed for each group, so that it does not matter where and when it runs.
        seeds = torch.randint(2**31, (len(tasks),), generator=generator).tolist()
        jobs = zip(tasks, seeds, strict=True)
        return join_groups(self._workers.starmap(roll_out_group, jobs, self.actor, self.settings))

    def _learn(
        self, batch: Batch, generator: torch.Generator, learn_actor: bool
    ) -> dict[str, float]:
        settings, mask = self.settings, batch.mask
        with torch.no_grad():
            old = self.actor(batch.tokens)
            clone = self._clone(batch.tokens)
            gains = advantages(self.critic(batch.tokens), batch.returns, mask, settings.gae_lambda)
            gains = centre_in_groups(gains, batch.group)
        log: dict[str, float] = {}
        go_on = learn_actor
        for _ in range(settings.epochs):
            order = torch.randperm(len(mask), generator=generator)
            for index in order.chunk(max(1, round(len(order) / settings.minibatch))):
                part = Batch(*(getattr(batch, k)[index] for k in vars(batch)))
                log["losses/value"] = self._critic_step(part)
                if go_on:
                    log |= self._actor_step(part, old[index], clone[index], gains[index])
                    go_on = log["losses/approx_kl"] <= settings.target_kl
        return log

    def _critic_step(self, batch: Batch) -> float:
        values = self.critic(batch.tokens)
        error = F.smooth_l1_loss(
            values, batch.returns[:, None].expand_as(values), reduction="none", beta=0.1
        )
        loss = _masked_mean(error, batch.mask)
        return _step(loss, self.critic, self._critic_opt)

    def _actor_step(
        self, batch: Batch, old: Tensor, clone: Tensor, gains: Tensor
    ) -> dict[str, float]:
        settings, std = self.settings, self.settings.action_std
        mean = self.actor(batch.tokens)
        log_ratio = ((batch.actions - old).square() - (batch.actions - mean).square()) / (
            2 * std**2
        )
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        surrogate = torch.minimum(ratio * gains, clipped * gains)
        kl_clone = _masked_mean((mean - clone).square() / (2 * std**2), batch.mask)
        loss = settings.kl_clone * kl_clone - _masked_mean(surrogate, batch.mask)
        moved = _masked_mean((mean - old).square() / (2 * std**2), batch.mask).item()
        return {
            "losses/policy": _step(loss, self.actor, self._actor_opt),
            "losses/approx_kl": moved,
            "losses/kl_clone": kl_clone.item(),
        }


def roll_out_group(task: Task, seed: int, actor: Head, settings: GeneralistSettings) -> Rollout:
    """Roll out a group of runs of one task with noise, all given the same signals."""
    generator = torch.Generator().manual_seed(seed)
    choose = NetworkChoice(actor, settings.action_std, settings.noise_memory, generator)
    # One mask for the group, so that its runs differ in their schedules alone.
    mask = drop_signals(1, generator).expand(settings.group, -1)
    return roll_out(task, settings.group, choose, mask)


def evaluate_actor(actor: Head, tasks: Sequence[Task], workers: Workers = IN_PROCESS) -> Tensor:
    """Log ratio to the tuned expert on each task, without and with a validation loss.

    Returns:
        Two values a task, ``(len(tasks), 2)``; infinite where a run diverged.
    """
    pairs = zip(final_losses(actor, tasks, workers), tasks, strict=True)
    return torch.stack([log_ratios(final, search_experts(task).reference) for final, task in pairs])


def final_losses(actor: Head, tasks: Sequence[Task], workers: Workers = IN_PROCESS) -> Tensor:
    """Final validation losses under an actor, not told any and told them on the way.

    Returns:
        Two values a task, ``(len(tasks), 2)``.
    """
    return torch.stack(list(workers.starmap(_final_losses, [(task,) for task in tasks], actor)))


def log_changes(final: Tensor, before: Tensor) -> Tensor:
    """Log ratios of final losses to earlier ones of the same tasks, each at most ±2."""
    change = log_ratios(final, 1.0) - log_ratios(before, 1.0)
    # Not a number is diverged as before.
    return change.nan_to_num(0.0).clamp(WORST_RETURN, -WORST_RETURN)


def _final_losses(task: Task, actor: Head) -> Tensor:
    mask = torch.ones(2, len(FEATURES))
    mask[0, VAL_COLUMNS] = 0.0
    return roll_out(task, 2, NetworkChoice(actor), mask).final


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def _step(loss: Tensor, module: Head, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    optimizer.step()
    return loss.item()
