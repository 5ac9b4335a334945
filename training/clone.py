"""Behavioural cloning of tuned experts with recovery labels (DAgger, Ross et al. 2011).

Every round rolls out policy, experts and random kicks on all training tasks, labels each state with
the action that leads back to the tuned expert, and fits the actor to all rounds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from lrenv.controller import Controller
from lrenv.decisions import MAX_DECISIONS
from lrenv.errors import InputError
from lrenv.policies.frozen import FrozenPolicy
from lrenv.policies.network import Head
from lrenv.trainees.families import short_tasks, training_numbers
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import SearchResult, search_experts
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.progress import track
from lrenv.training.rollout import NetworkChoice, drop_signals, recovery_label, roll_out
from lrenv.training.runfolder import read_state, read_tensors, write_state, write_tensors
from lrenv.training.settings import GeneralistSettings

_KICK_RATE = 0.04
_OFFSET_RATE = 0.05  # a decision, as the kicks
_START_KICKS = 4
_KICK_START = 3
_CHUNK = 20
_HELD_OUT_ONE_IN = 10
_CHECK_EVERY = 100  # optimizer steps
_PART = 256  # runs that are read at once


@dataclass(frozen=True)
class Demonstrations:
    """Labelled runs: tokens ``(m, t, f)``, labels ``(m, t)``, mask of real decisions ``(m, t)``."""

    tokens: Tensor
    labels: Tensor
    mask: Tensor

    def rows(self, rows: slice) -> Demonstrations:
        """Some of the runs."""
        return Demonstrations(*(part[rows] for part in vars(self).values()))

    def split(self, n_last: int) -> tuple[Demonstrations, Demonstrations]:
        """All runs but the last ``n_last``, and these."""
        first = len(self.tokens) - n_last
        return self.rows(slice(first)), self.rows(slice(first, None))

    @classmethod
    def join(cls, parts: list[Demonstrations]) -> Demonstrations:
        """Stack demonstrations."""
        return cls(
            *(torch.cat([getattr(p, k) for p in parts]) for k in ("tokens", "labels", "mask"))
        )


class _Demonstrator:
    """Acts as the policy, as an expert whose LR may be off, or at random; keeps the labels.

    Half of the runs with a policy are its own. In the others the expert, who acts in a part of the
    decisions, aims for some time at a multiple of its LR: if it always came back at once, the LR
    itself would tell what the tuned one is, and no other signal would need to be read.
    """

    def __init__(
        self, actor: Head | None, log_schedule: Tensor, n_runs: int, generator: torch.Generator
    ) -> None:
        self._policy = NetworkChoice(actor) if actor else None
        self._log_schedule, self._generator = log_schedule, generator
        self._expert_share = torch.ones(n_runs)
        if actor:
            self._expert_share = (2 * self._uniform(n_runs) - 1).clamp_min(0.0)
        # The policy acts with a small constant shift of its actions in each run.
        self._bias = 0.1 * self._normal(n_runs)
        self._offset = self._draw_offset(n_runs)
        # A third of the runs leave the start for an LR far too low or too high: e^-8 to e^4 of it.
        kicks = torch.where(self._uniform(n_runs) < 0.5, -1.0, 0.5)
        self._start_kick = torch.where(self._uniform(n_runs) < 0.33, kicks, 0.0)
        self._start_end = _KICK_START + (_START_KICKS * self._uniform(n_runs)).round()
        self.labels: list[Tensor] = []

    def __call__(self, token: Tensor, controller: Controller) -> Tensor:
        label = recovery_label(self._log_schedule, controller)
        n = len(label)
        redrawn = self._uniform(n) < _OFFSET_RATE
        self._offset = torch.where(redrawn, self._draw_offset(n), self._offset)
        action = recovery_label(self._log_schedule, controller, self._offset)
        if self._policy is not None:
            by_expert = self._uniform(n) < self._expert_share
            action = torch.where(by_expert, action, self._policy(token, controller) + self._bias)
        action = action + 0.1 * self._normal(n)
        kick = 2 * self._uniform(n) - 1
        action = torch.where(self._uniform(n) < _KICK_RATE, kick, action)
        if len(self.labels) >= _KICK_START:
            early = (len(self.labels) < self._start_end) & (self._start_kick != 0)
            action = torch.where(early, self._start_kick, action)
        self.labels.append(label)
        return action

    def _draw_offset(self, n: int) -> Tensor:
        """Offsets of the log LR: 0 for half of the runs, mostly negative for the others."""
        some = (1.5 * self._normal(n) - 1.0).clamp(-6.0, 1.0)
        return torch.where(self._uniform(n) < 0.5, some, 0.0)

    def _normal(self, n: int) -> Tensor:
        return torch.randn(n, generator=self._generator)

    def _uniform(self, n: int) -> Tensor:
        return torch.rand(n, generator=self._generator)


def demonstrate(
    task: Task, search: SearchResult, seed: int, actor: Head | None, settings: GeneralistSettings
) -> Demonstrations:
    """Roll out a group of labelled runs of one task; without an actor the expert acts."""
    generator = torch.Generator().manual_seed(seed)
    log_schedule = search.log_schedule(task.spec.total_steps)
    demonstrator = _Demonstrator(actor, log_schedule, settings.group, generator)
    rollout = roll_out(task, settings.group, demonstrator, drop_signals(settings.group, generator))
    tokens, labels = rollout.tokens, torch.stack(demonstrator.labels, 1)
    n_runs, t, f = tokens.shape
    out = Demonstrations(
        torch.zeros(n_runs, MAX_DECISIONS, f),
        torch.zeros(n_runs, MAX_DECISIONS),
        torch.zeros(n_runs, MAX_DECISIONS),
    )
    out.tokens[:, :t], out.labels[:, :t], out.mask[:, :t] = tokens, labels, 1.0
    return out


def demonstrated_tasks(settings: GeneralistSettings) -> dict[int, Task]:
    """The tasks of a round by their numbers.

    Raises:
        InputError: All of them are longer than those that are demonstrated.
    """
    longest = settings.longest_demonstration
    found = dict(short_tasks(training_numbers(settings.tasks), settings.family, longest))
    if not found:
        raise InputError(
            f"Expected tasks of at most {longest} steps, got none; raise longest_demonstration."
        )
    return found


def collect(
    folder: Path,
    round_: int,
    actor: Head | None,
    settings: GeneralistSettings,
    workers: Workers = IN_PROCESS,
) -> Demonstrations:
    """Gather the demonstrations of a round, one file a chunk of tasks, skipping those there."""
    tasks = demonstrated_tasks(settings)
    chunks = {
        folder / "demonstrations" / f"round{round_}-{start}.safetensors": [
            i for i in range(start, start + _CHUNK) if i in tasks
        ]
        for start in sorted({i - i % _CHUNK for i in tasks})
    }
    missing = [i for path, chunk in chunks.items() if not path.exists() for i in chunk]
    seed = settings.seed * 10**6 + round_ * 10**4
    jobs = ((tasks[i], search_experts(tasks[i]), seed + i) for i in missing)
    found = workers.starmap(demonstrate, jobs, actor, settings)
    parts = []
    for path in track(chunks, f"Demonstrations, round {round_ + 1} of {settings.rounds}"):
        if not path.exists():
            new = Demonstrations.join(list(islice(found, len(chunks[path]))))
            write_tensors(path, vars(new))
        parts.append(Demonstrations(**read_tensors(path)))
    return Demonstrations.join(parts)


def clone(
    folder: Path,
    actor: Head,
    settings: GeneralistSettings,
    writer: SummaryWriter,
    workers: Workers = IN_PROCESS,
    start: FrozenPolicy | None = None,
) -> None:
    """Train the actor by all rounds of cloning, from a start where there is one.

    The last tenth of the tasks is held out, see :func:`fit`. Goes on after the last complete round.

    Raises:
        InputError: There are fewer than two tasks.
    """
    if start:
        actor.start_from(start.actor)
    if not settings.rounds:
        return
    last = folder / f"clone-round{settings.rounds - 1}.pt"
    if last.exists():
        actor.load_state_dict(read_state(last))
        return
    n_tasks = len(demonstrated_tasks(settings))
    if n_tasks < 2:
        raise InputError(
            f"Expected at least 2 tasks of at most {settings.longest_demonstration} steps, got "
            f"{n_tasks}; raise tasks or longest_demonstration."
        )
    n_held_out = settings.group * max(1, n_tasks // _HELD_OUT_ONE_IN)
    data: list[tuple[Demonstrations, Demonstrations]] = []
    for round_ in range(settings.rounds):
        new = collect(folder, round_, actor if round_ or start else None, settings, workers)
        data.append(new.split(n_held_out))
        path = folder / f"clone-round{round_}.pt"
        if path.exists():
            actor.load_state_dict(read_state(path))
            continue
        fitted, held_out = (Demonstrations.join(list(parts)) for parts in zip(*data, strict=True))
        fit(actor, fitted, held_out, settings, round_, writer)
        write_state(path, actor.state_dict())


def fit(
    actor: Head,
    data: Demonstrations,
    held_out: Demonstrations,
    settings: GeneralistSettings,
    round_: int,
    writer: SummaryWriter,
) -> float:
    """Fit the actor's mean actions to the labels: smooth L1, AdamW, one cosine a round.

    An actor soon knows its tasks by heart, so the weights that do best on tasks held out are kept.

    Returns:
        The error of these, see :func:`label_error`.
    """
    optimizer = torch.optim.AdamW(actor.parameters(), weight_decay=0.01)
    last = round_ == settings.rounds - 1
    n_steps = settings.last_clone_steps if last else settings.clone_steps
    peak = settings.last_clone_lr if last else settings.clone_lr
    batches = _batches(data, settings.clone_batch, n_steps, settings.seed + round_)
    best, best_state = math.inf, actor.state_dict()
    for step, index in enumerate(track(batches, f"Cloning, round {round_ + 1}", n_steps)):
        rise = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = peak * rise * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        loss = _errors(actor, data, index).sum() / data.mask[index].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        done = round_ * settings.clone_steps + step
        if step % 20 == 0:
            writer.add_scalar("losses/clone", loss.item(), done)
        if (step + 1) % _CHECK_EVERY == 0 or step + 1 == n_steps:
            error = label_error(actor, held_out)
            writer.add_scalar("losses/clone_held_out", error, done)
            if error < best:
                best, best_state = error, copy.deepcopy(actor.state_dict())
    actor.load_state_dict(best_state)
    writer.flush()
    return best


@torch.no_grad()
def label_error(actor: Head, data: Demonstrations) -> float:
    """Mean over decisions of the smooth-L1 error (β = 0.1) of an actor's actions."""
    parts = torch.arange(len(data.tokens)).split(_PART)
    errors = (_errors(actor, data, rows).sum().item() for rows in parts)
    return sum(errors) / data.mask.sum().item()


def _errors(actor: Head, data: Demonstrations, rows: Tensor) -> Tensor:
    """Error of each decision of some runs, 0 behind their ends; ``(len(rows), t)``."""
    actions = actor(data.tokens[rows])
    errors = F.smooth_l1_loss(actions, data.labels[rows], reduction="none", beta=0.1)
    return errors * data.mask[rows]


def _batches(data: Demonstrations, size: int, n_steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        yield torch.randint(len(data.tokens), (size,), generator=generator)
