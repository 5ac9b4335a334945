"""The methods of a comparison on one task and seed: policies, experts, peers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lrenv.decisions import equal_steps
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.policies.frozen import FrozenPolicy
from lrenv.trainees.base import Split
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import SearchResult, run_schedules, search_experts
from lrenv.training.methods import learned_lr
from lrenv.training.metrics import Utility, utilities
from lrenv.training.peers import SCALES, effective_lr, get_peer, usual_peak
from lrenv.training.records import (
    MATCHED,
    OTHER_SEED,
    TUNED,
    TUNED_COSINE,
    RunRecord,
    make_record,
)

VALIDATIONS = 20
"""Validation losses over a run, for the time it takes to reach the tuned expert's."""

_USUAL_KINDS = (*TUNED_KINDS, "wsd", "constant")
_SPLITS: tuple[Split, ...] = ("val", "test")


class Part(Protocol):
    """Methods that are run together, and kept together, on one task and seed."""

    @property
    def key(self) -> list[Any]:
        """JSON values that tell this part's records from others'."""

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """Train on a task.

        Args:
            task: The task; its seed is the seed of all runs.
            name: How the task is called in the results.
            search: Its tuned expert.
        """


@dataclass(frozen=True)
class PolicyPart:
    """A policy in a plain torch loop under ``LearnedLR``, and the constant at its mean LR.

    Attributes:
        policy: The policy.
        hints: LRs that its optimizers are made with.
        layerwise: Multiply its LR by LC's multipliers.
        rollback: Let it take a run back to its last good weights.
        validate: Tell it the validation loss, ``VALIDATIONS`` times a run, which is timed.
    """

    policy: FrozenPolicy
    hints: tuple[float, ...] = (1e-3,)
    layerwise: bool = False
    rollback: bool = False
    validate: bool = False

    @property
    def key(self) -> list[Any]:
        """See :class:`Part`."""
        own = [self.policy.card["sha256"], self.hints]
        extras = [name for name in ("layerwise", "rollback", "validate") if getattr(self, name)]
        return ["policy", self.policy.name, *own, *extras]

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """See :class:`Part`."""
        records, mean_lr = [], 0.0
        extras = {
            "with LC": self.layerwise,
            "rollback": self.rollback,
            "validation": self.validate,
        }
        called = ", ".join([self.policy.name, *(name for name, on in extras.items() if on)])
        for hint in self.hints:
            trainee = build_trainee(task)
            for group in trainee.optimizer.param_groups:
                group["lr"] = hint
            began = time.perf_counter()
            scheduler = learned_lr(
                trainee, self.policy, self.rollback, "lc" if self.layerwise else None
            )
            setup = time.perf_counter() - began
            run = _train(trainee, scheduler.step, validate=self.validate)
            labels = (name, f"learned: {called}", f"hint {hint:g}", task.seed)
            records.append(_record(labels, search.reference, trainee, run, setup))
            # Hints make no difference to a policy that ignores them: one constant a policy.
            mean_lr = float(run.history[1].mean())
        label = f"{MATCHED}: {called}"
        return records + _run_schedules(task, name, [(label, "constant", mean_lr)], search)


@dataclass(frozen=True)
class ExpertsPart:
    """Experts at one peak, the cosine tuned in as many runs as a peer, and the tuned expert.

    Attributes:
        peak: Peak LR of the untuned experts; the usual default if None.
    """

    peak: float | None = None

    @property
    def key(self) -> list[Any]:
        """See :class:`Part`."""
        return ["experts", self.peak, TUNED_COSINE]

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """See :class:`Part`."""
        peak = _peak(self.peak, task)
        plans = [(kind, kind, peak) for kind in _USUAL_KINDS]
        few = search.best_around("cosine", peak, len(SCALES))
        plans.append((TUNED_COSINE, "cosine", search.peaks[few]))
        plans.append((TUNED, search.kinds[search.best], search.peaks[search.best]))
        return _run_schedules(task, name, plans, search)


@dataclass(frozen=True)
class OtherSeedPart:
    """The expert that was tuned on another seed: how good it still is when the seed changes."""

    @staticmethod
    def searched(task: Task) -> Task:
        """The task whose tuned expert is taken over."""
        return replace(task, seed=task.seed + 1)

    @property
    def key(self) -> list[Any]:
        """See :class:`Part`."""
        return ["other seed"]

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """See :class:`Part`."""
        other = search_experts(self.searched(task))
        plan = (OTHER_SEED, other.kinds[other.best], other.peaks[other.best])
        return _run_schedules(task, name, [plan], search)


@dataclass(frozen=True)
class PeerPart:
    """A peer at its default scale, and where asked at the best of all scales.

    Attributes:
        name: A key of ``PEERS``.
        peak: Peak LR that its scale refers to; the usual default if None.
        tuned: Run all scales.
    """

    name: str
    peak: float | None = None
    tuned: bool = False

    @property
    def key(self) -> list[Any]:
        """See :class:`Part`."""
        return ["peer", *vars(self).values(), get_peer(self.name).load()]

    def run(self, task: Task, name: str, search: SearchResult) -> list[RunRecord]:
        """See :class:`Part`."""
        default = self._run(task, name, search, 1.0)
        if not self.tuned:
            return [default]
        others = [self._run(task, name, search, scale) for scale in SCALES if scale != 1.0]
        best = min([default, *others], key=lambda r: math.inf if r.ratio is None else r.ratio)
        return [default, best.relabelled(f"{get_peer(self.name).label}, tuned")]

    def _run(self, task: Task, name: str, search: SearchResult, scale: float) -> RunRecord:
        peer, trainee = get_peer(self.name), build_trainee(task)
        peer.load()  # no part of its time
        began = time.perf_counter()
        peer_run = peer.start(trainee, _peak(self.peak, task), scale)
        setup = time.perf_counter() - began
        run = _train(trainee, peer_run.after_step, peer_run.finish is None, goes_on=False)
        if peer_run.finish:
            peer_run.finish()
        labels = (name, peer.label, f"scale {scale:g}", task.seed)
        return _record(labels, search.reference, trainee, run, setup)


def _peak(given: float | None, task: Task) -> float:
    return usual_peak(task.spec.optimizer) if given is None else given


def _run_schedules(
    task: Task, name: str, plans: list[tuple[str, str, float]], search: SearchResult
) -> list[RunRecord]:
    """Train schedules, given by label, expert and peak, in lockstep."""
    total = task.spec.total_steps
    rates = torch.tensor([schedule(kind, total, top) for _, kind, top in plans])
    runs: list[tuple[Tensor, Tensor, _Scores]] = []
    for part in rates.split(task.spec.lockstep or len(rates)):
        found = run_schedules(task, part, equal_steps(total, VALIDATIONS))
        runs += zip(found.losses, found.watched, _scores(found.trainee), strict=True)
        del found  # The next ones need the memory.
    records = []
    for (label, kind, top), lrs, (losses, vals, scores) in zip(plans, rates, runs, strict=True):
        labels = (name, label, f"{kind}, peak {top:.3g}", task.seed)
        record = make_record(
            labels, search.reference, scores.finals, (losses, lrs), val_curve=vals.tolist()
        )
        records.append(replace(record, val_steps=equal_steps(total, VALIDATIONS), **scores.extras))
    return records


@dataclass(frozen=True)
class _Run:
    """What a run left behind: losses and LRs of its steps, validation losses, its own time.

    ``watched`` holds the steps behind which validation losses were taken, and the time then.
    """

    history: tuple[Tensor, Tensor]
    val_curve: list[float] | None
    watched: tuple[list[int], list[float]]
    seconds: float
    goes_on: bool


def _train(
    trainee: SingleTrainee,
    after_step: Callable[..., None],
    watch: bool = True,
    goes_on: bool = True,
    validate: bool = False,
) -> _Run:
    """Train to the end, or, unless it goes on, to the first loss or gradient that is not finite.

    Where asked to validate, what comes after the step is told validation losses. The time counts
    these alone, not those of ours.
    """
    total = trainee.total_steps
    watched = equal_steps(total, VALIDATIONS) if watch else []
    losses, rates, vals, seconds = [], [], [], 0.0
    clock: tuple[list[int], list[float]] = ([], [])
    for step in range(1, total + 1):
        began = time.perf_counter()
        loss = trainee.backward()
        if goes_on:
            trainee.optimizer.step()
        elif not (loss.isfinite() and _stepped(trainee.optimizer)):
            losses.append(torch.full_like(loss, math.nan))
            rates.append(effective_lr(trainee.optimizer))
            break
        # Behind the step, where peers know the LR they took, and before schedulers change it.
        rates.append(effective_lr(trainee.optimizer))
        told = validate and step in watched
        after_step(loss, **({"val_loss": float(trainee.evaluate("val")[0])} if told else {}))
        seconds += time.perf_counter() - began
        losses.append(loss)
        if step in watched:
            vals.append(float(trainee.evaluate("val")[0]))
            clock[0].append(step)
            clock[1].append(seconds)
    history = torch.cat(losses), torch.tensor(rates)
    return _Run(history, vals if watch else None, clock, seconds, goes_on)


def _stepped(optimizer: torch.optim.Optimizer) -> bool:
    """Take an optimizer step; False where it refuses gradients that are not finite, as DoG does."""
    try:
        optimizer.step()
    except AssertionError:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        if all(grad is None or grad.isfinite().all() for grad in grads):
            raise
        return False
    return True


@dataclass(frozen=True)
class _Scores:
    """What is measured of a trained run: of the record's own arguments, and further fields."""

    finals: list[float]
    extras: dict[str, Any]


def _scores(trainee: SingleTrainee | BatchedTrainee) -> list[_Scores]:
    """Final validation loss, test loss and test accuracy of each run, and LRBench's metrics."""
    (val, _), (test, accuracy) = (trainee.evaluate(split) for split in _SPLITS)
    train, _ = trainee.evaluate("train", len(trainee.dataset.x_test))
    classifies = not accuracy.isnan().any()  # no accuracy where there are no classes
    found = utilities(trainee.logits("test")) if classifies else [None] * trainee.n_runs
    gaps = (test - train).abs().tolist()
    finals = torch.stack([val, test, accuracy], 1).tolist()
    return [_Scores(*row) for row in zip(finals, map(_extras, found, gaps), strict=True)]


def _extras(found: Utility | None, gap: float) -> dict[str, Any]:
    names = ("top5", "confidence", "confidence_std", "cdac")
    extras: dict[str, Any] = {name: getattr(found, name, None) for name in names}
    return {**extras, "loss_gap": gap if math.isfinite(gap) else None}


def _record(
    labels: tuple[str, str, str, int],
    reference: float,
    trainee: SingleTrainee,
    run: _Run,
    setup: float,
) -> RunRecord:
    """The record of a run whose set-up took that many seconds beside its own."""
    (scores,) = _scores(trainee)
    if not (run.goes_on or run.history[0].isfinite().all()):
        scores = _Scores([math.nan] * len(scores.finals), dict.fromkeys(scores.extras))
    seconds = setup + run.seconds
    record = make_record(labels, reference, scores.finals, run.history, seconds, run.val_curve)
    if run.val_curve is not None:
        steps, times = run.watched
        record = replace(record, val_steps=steps, val_seconds=[setup + t for t in times])
    return replace(record, **scores.extras)
