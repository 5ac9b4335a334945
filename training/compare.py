"""Every method on one task and seed: policies, experts, peers, and the tuned expert."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.policies.experts import TUNED_KINDS, schedule
from lrenv.policies.frozen import FrozenPolicy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.training.expert_search import SearchResult, run_schedules
from lrenv.training.peers import SCALES, Peer, effective_lr, get_peer
from lrenv.training.records import MATCHED, TUNED, RunRecord, make_record

VALIDATIONS = 20
"""Validation losses over a run, for the time it takes to reach the tuned expert's."""

_USUAL_KINDS = (*TUNED_KINDS, "wsd", "constant")


@dataclass(frozen=True)
class Methods:
    """What is compared.

    Attributes:
        policies: Learned policies, each in a plain torch loop under ``LearnedLR``.
        hints: LRs that their optimizers are made with.
        peak: Peak LR of the untuned experts and of peers; the usual default if None.
        peers: Names of peers.
        tune_peers: Run each peer at the best of ``SCALES`` too, beside its default.
    """

    policies: tuple[FrozenPolicy, ...]
    hints: tuple[float, ...] = (1e-3,)
    peak: float | None = None
    peers: tuple[str, ...] = ()
    tune_peers: bool = False

    def __post_init__(self) -> None:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise InputError(
                f"Expected policies of different names, got {', '.join(names)}; compare them in "
                "two evaluations, or export one under another name."
            )
        for name in self.peers:
            get_peer(name)


def compare(task: Task, name: str, search: SearchResult, methods: Methods) -> list[RunRecord]:
    """Run every method on one task and seed.

    Args:
        task: The task; its seed is the seed of all runs.
        name: How the task is called in the results.
        search: Its tuned expert.
        methods: What is compared.
    """
    if task.spec.lr_multiplier != 1.0:
        raise InputError(
            f"Expected an lr_multiplier of 1 to compare LRs, got {task.spec.lr_multiplier}; "
            "leave it out."
        )
    records, matched = [], {}
    for policy in methods.policies:
        for hint in methods.hints:
            record, mean_lr = run_policy(task, name, policy, hint, search.reference)
            records.append(record)
            # Hints make no difference to a policy that ignores them: one constant a policy.
            matched[policy.name] = mean_lr
    peak = methods.peak or usual_peak(task.spec.optimizer)
    plans = [(kind, kind, peak) for kind in _USUAL_KINDS]
    for policy_name, mean_lr in matched.items():
        label = MATCHED if len(matched) == 1 else f"{MATCHED}: {policy_name}"
        plans.append((label, "constant", mean_lr))
    plans.append((TUNED, search.kinds[search.best], search.peaks[search.best]))
    records += _run_experts(task, name, plans, search.reference)
    for peer in map(get_peer, methods.peers):
        records += _run_peer(task, name, peer, peak, search.reference, methods.tune_peers)
    return records


def usual_peak(optimizer: OptimizerSpec) -> float:
    """The peak LR people start from: 1e-3 for Adam, 1e-2 for SGD with momentum, 1e-1 without."""
    if optimizer.name != "sgd":
        return 1e-3
    return 1e-2 if optimizer.momentum else 1e-1


def run_policy(
    task: Task, name: str, policy: FrozenPolicy, hint: float, reference: float
) -> tuple[RunRecord, float]:
    """Train one run in a plain torch loop under ``LearnedLR``; returns its record and mean LR."""
    trainee = build_trainee(task)
    for group in trainee.optimizer.param_groups:
        group["lr"] = hint
    began = time.perf_counter()
    scheduler = LearnedLR(trainee.optimizer, task.spec.total_steps, policy)
    setup = time.perf_counter() - began
    run = _train(trainee, scheduler.step)
    labels = (name, f"learned: {policy.name}", f"hint {hint:g}", task.seed)
    record = make_record(
        labels, reference, _finals(trainee), run.history, setup + run.seconds, run.val_curve
    )
    return record, float(run.history[1].mean())


def _run_experts(
    task: Task, name: str, plans: list[tuple[str, str, float]], reference: float
) -> Iterator[RunRecord]:
    """Train schedules, given by label, expert and peak, in lockstep."""
    rates = [schedule(kind, task.spec.total_steps, top) for _, kind, top in plans]
    watch = _watched(task.spec.total_steps)
    runs = run_schedules(task, rates, ("val", "test"), watch)
    finals = torch.stack([runs.scores["val"][0], *runs.scores["test"]], 1)
    for k, (label, kind, top) in enumerate(plans):
        labels = (name, label, f"{kind}, peak {top:.3g}", task.seed)
        history = (runs.losses[k], torch.tensor(rates[k]))
        yield make_record(
            labels, reference, finals[k].tolist(), history, val_curve=runs.watched[k].tolist()
        )


def _run_peer(
    task: Task, name: str, peer: Peer, peak: float, reference: float, tuned: bool
) -> list[RunRecord]:
    """Train under a peer at its default scale, and where asked at the best of all scales."""

    def run(scale: float) -> RunRecord:
        trainee = build_trainee(task)
        began = time.perf_counter()
        peer_run = peer.start(trainee, peak, scale)
        setup = time.perf_counter() - began
        found = _train(trainee, peer_run.after_step, peer_run.finish is None, goes_on=False)
        if peer_run.finish:
            peer_run.finish()
        labels = (name, peer.label, f"scale {scale:g}", task.seed)
        seconds, finals = setup + found.seconds, _finals(trainee)
        if not found.history[0].isfinite().all():
            finals = [math.nan] * len(finals)
        return make_record(labels, reference, finals, found.history, seconds, found.val_curve)

    default = run(1.0)
    if not tuned:
        return [default]
    others = [default, *(run(scale) for scale in SCALES if scale != 1.0)]
    best = min(others, key=lambda r: float("inf") if r.ratio is None else r.ratio)
    return [default, best.relabelled(f"{peer.label}, tuned")]


@dataclass(frozen=True)
class _Run:
    """What a run left behind: losses and LRs of its steps, validation losses, its own time."""

    history: tuple[Tensor, Tensor]
    val_curve: list[float] | None
    seconds: float


def _train(
    trainee: SingleTrainee,
    after_step: Callable[[Tensor], None],
    watch: bool = True,
    goes_on: bool = True,
) -> _Run:
    """Train to the end, or, unless it goes on, to the first loss that is not finite.

    The time does not count the validations of ours.
    """
    total = trainee.total_steps
    watched = _watched(total) if watch else []
    losses, rates, vals, seconds = [], [], [], 0.0
    for step in range(1, total + 1):
        began = time.perf_counter()
        loss = trainee.backward()
        if not (goes_on or loss.isfinite()):
            losses.append(loss)
            rates.append(effective_lr(trainee.optimizer))
            break
        trainee.optimizer.step()
        # Behind the step, where peers know the LR they took, and before schedulers change it.
        rates.append(effective_lr(trainee.optimizer))
        after_step(loss)
        seconds += time.perf_counter() - began
        losses.append(loss)
        if step in watched:
            vals.append(float(trainee.evaluate("val")[0]))
    return _Run((torch.cat(losses), torch.tensor(rates)), vals if watch else None, seconds)


def _watched(total_steps: int) -> list[int]:
    """Numbers of steps behind which the validation loss is taken; the last one is the end."""
    return [-(-total_steps * k // VALIDATIONS) for k in range(1, VALIDATIONS + 1)]


def _finals(trainee: SingleTrainee) -> list[float]:
    """Final validation loss, test loss and test accuracy."""
    parts = [trainee.evaluate("val")[0], *trainee.evaluate("test")]
    return torch.cat(parts).tolist()
