"""Records of evaluated runs, and their summary by method."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrenv.policies.experts import TUNED_KINDS
from lrenv.training.expert_search import FLOOR, N_PEAKS
from lrenv.training.peers import SCALES

TUNED, MATCHED = "tuned expert", "LR-matched constant"
OTHER_SEED = "expert tuned on another seed"
TUNED_COSINE = "cosine, tuned"
DIVERGED = 2.0
"""Log ratio of test losses that a diverged run counts as."""

PROFILE_END = 2.0
"""Largest ratio of the performance profile: the share of runs within each ratio, from 1."""

_CURVE_POINTS = 200
_BOOTSTRAP = 2000
_ROUNDING = 1e-4  # the tuned expert, trained once more, does not beat itself


@dataclass(frozen=True)
class RunRecord:
    """One run of one method, as the results keep it; None stands for a value that is not finite.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        detail: Its peak or hint.
        seed: Seed of weights and data order.
        ratio: Final validation loss over the tuned expert's, neither taken for less than ``FLOOR``.
        val_loss: Final validation loss.
        test_loss: Final test loss.
        test_accuracy: Final test accuracy.
        reference: Final validation loss of the tuned expert.
        mean_train_loss: Training loss, averaged over the run.
        diverged: Whether the final loss is not finite.
        seconds: Wall-clock time; None where runs trained in lockstep.
        curve: Steps, losses and LRs at some of the steps.
        val_curve: Validation losses at equal distances over the run, the last one at its end; None
            where they were not taken.
        val_steps: Numbers of the steps behind which these were taken.
        val_seconds: Wall-clock time of the run at these; None where runs trained in lockstep.
        top5: Share of test labels among the 5 likeliest classes; this and the next three are None
            for trainees that do not classify, and for runs that diverged.
        confidence: Mean probability of right predictions on test data.
        confidence_std: Its standard deviation.
        cdac: Standard deviation over classes of their mean confidence, see
            :class:`lrenv.training.metrics.Utility`.
        loss_gap: Distance of the final losses on test data and on as many training examples.
        total_steps: Length of the task in optimizer steps; this and the next three tell what has
            the same name from what is the same; None where the results do not say.
        data: Name of its data.
        policy: Name of the policy that set the LRs, or whose mean LR was taken; None without one.
        policy_hash: Hash of its weights.
    """

    task: str
    method: str
    detail: str
    seed: int
    ratio: float | None
    val_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    reference: float
    mean_train_loss: float | None
    diverged: bool
    seconds: float | None
    curve: dict[str, list[Any]] | None = None
    val_curve: list[float | None] | None = None
    val_steps: list[int] | None = None
    val_seconds: list[float] | None = None
    top5: float | None = None
    confidence: float | None = None
    confidence_std: float | None = None
    cdac: float | None = None
    loss_gap: float | None = None
    total_steps: int | None = None
    data: str | None = None
    policy: str | None = None
    policy_hash: str | None = None

    def relabelled(self, method: str) -> RunRecord:
        """The same run as that of another method."""
        return replace(self, method=method)

    @property
    def time_to_tuned(self) -> float | None:
        """Share of the run until the tuned expert's final loss, infinite if never reached.

        None where validation losses were not taken.
        """
        if self.total_steps and self.val_steps:  # a peer that diverged has few of them
            return self._spent([step / self.total_steps for step in self.val_steps])
        n = len(self.val_curve or ())
        return self._spent([k / n for k in range(1, n + 1)])

    @property
    def steps_to_tuned(self) -> float | None:
        """Optimizer steps until then; infinite and None as in :attr:`time_to_tuned`."""
        return self._spent(self.val_steps)

    @property
    def seconds_to_tuned(self) -> float | None:
        """Seconds until then; infinite and None as in :attr:`time_to_tuned`."""
        return self._spent(self.val_seconds)

    def _spent(self, clock: Sequence[float] | None) -> float | None:
        """What a clock, read at each validation, shows at the tuned expert's final loss."""
        if self.val_curve is None or clock is None:
            return None
        target = max(self.reference, FLOOR) * (1.0 + _ROUNDING)
        for loss, now in zip(self.val_curve, clock, strict=True):
            if loss is not None and loss <= target:
                return float(now)
        return math.inf


def make_record(
    labels: tuple[str, str, str, int],
    reference: float,
    finals: Sequence[float],
    history: tuple[Tensor, Tensor],
    seconds: float | None = None,
    val_curve: Sequence[float] | None = None,
) -> RunRecord:
    """Build a record.

    Args:
        labels: Task, method, detail and seed.
        reference: Final validation loss of the tuned expert.
        finals: Final validation loss, test loss and test accuracy.
        history: Training loss and LR of every step.
        seconds: Wall-clock time.
        val_curve: Validation losses at equal distances over the run.
    """
    losses, rates = history
    val, test, accuracy = map(_finite, finals)
    index = torch.linspace(0, len(losses) - 1, min(_CURVE_POINTS, len(losses))).round().long()
    return RunRecord(
        *labels,
        ratio=None if val is None else max(val, FLOOR) / max(reference, FLOOR),
        val_loss=val,
        test_loss=test,
        test_accuracy=accuracy,
        reference=reference,
        mean_train_loss=_finite(float(losses.mean())),
        diverged=val is None,
        seconds=seconds,
        curve={
            "step": index.tolist(),
            "loss": [_finite(x) for x in losses[index].tolist()],
            "lr": rates[index].tolist(),
        },
        val_curve=None if val_curve is None else [_finite(x) for x in val_curve],
    )


def summaries(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Summarise runs by method, see :func:`summarise`."""
    test_losses = tuned_test_losses(records)
    by_method: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    return [summarise(name, rows, test_losses) for name, rows in by_method.items()]


def summarise(
    method: str,
    rows: Sequence[RunRecord],
    test_losses: Mapping[tuple[str, int], float] | None = None,
) -> dict[str, Any]:
    """Summarise the runs of a method; a diverged run counts as infinitely bad.

    Geometric means are over tasks, of each one's mean over seeds, as their interval is.

    Args:
        method: Name of the method.
        rows: Its runs.
        test_losses: Final test loss of the tuned expert by task and seed, see
            :func:`tuned_test_losses`.
    """
    ratios = torch.tensor([math.inf if r.ratio is None else r.ratio for r in rows]).double()
    logs = torch.log(ratios)
    by_task = _by_task_and_seed(rows, logs.tolist())
    low, high = bootstrap_interval(by_task)
    times = [t for row in rows if (t := row.time_to_tuned) is not None]
    return {
        "method": method,
        "runs": len(rows),
        "tuning_runs": _tuning_runs(method),
        "median_ratio": _finite(float(ratios.quantile(0.5))),
        "geometric_mean_ratio": _finite(math.exp(_mean_of_tasks(by_task))),
        "low": _finite(low) if len(rows) > 1 else None,
        "high": _finite(high) if len(rows) > 1 else None,
        "worst_ratio": _finite(float(ratios.max())),
        **_test_ratios(rows, test_losses or {}),
        "wins": float((ratios < 1.0 - _ROUNDING).double().mean()),
        "profile_area": float((PROFILE_END - ratios.clamp(1.0, PROFILE_END)).mean())
        / (PROFILE_END - 1.0),
        "median_time": _median(times),
        "reached": sum(t < math.inf for t in times) / len(times) if times else None,
        "diverged": sum(r.diverged for r in rows),
        "mean_train_loss": _mean([r.mean_train_loss for r in rows]),
        "val_loss": _mean([r.val_loss for r in rows]),
        "test_accuracy": _mean([r.test_accuracy for r in rows]),
        **_lrbench(rows),
    }


def tuned_test_losses(records: Sequence[RunRecord]) -> dict[tuple[str, int], float]:
    """Final test loss of the tuned expert by task and seed, where there is one."""
    return {
        (r.task, r.seed): r.test_loss
        for r in records
        if r.method == TUNED and r.test_loss is not None
    }


def _test_ratios(
    rows: Sequence[RunRecord], test_losses: Mapping[tuple[str, int], float]
) -> dict[str, float | None]:
    """Geometric mean and median of final test losses over the tuned expert's.

    Each is at most as if diverged; None where a run or its expert lacks one.
    """
    logs = []
    for row in rows:
        reference = test_losses.get((row.task, row.seed))
        if reference is None:
            return {"test_ratio": None, "median_test_ratio": None}
        if row.diverged or row.test_loss is None:
            logs.append(DIVERGED)
        else:
            log = math.log(max(row.test_loss, FLOOR) / max(reference, FLOOR))
            logs.append(min(log, DIVERGED))
    mean = _mean_of_tasks(_by_task_and_seed(rows, logs))
    return {
        "test_ratio": math.exp(mean),
        "median_test_ratio": math.exp(statistics.median(logs)),
    }


def _lrbench(rows: Sequence[RunRecord]) -> dict[str, float | None]:
    """LRBench's metrics: means of utility over runs that classify, medians of cost, robustness."""
    classified = [r for r in rows if r.diverged or r.test_accuracy is not None]
    names = ("top5", "confidence", "confidence_std", "cdac")
    steps, seconds = (
        [t for row in rows if (t := getattr(row, f"{unit}_to_tuned")) is not None]
        for unit in ("steps", "seconds")
    )
    return {
        "top1": _mean([None if r.diverged else r.test_accuracy for r in classified]),
        **{name: _mean([getattr(r, name) for r in classified]) for name in names},
        "median_steps": _median(steps),
        "median_seconds": _median(seconds),
        "loss_gap": _mean([r.loss_gap for r in rows]),
    }


def _tuning_runs(method: str) -> int:
    if method in (TUNED, OTHER_SEED):
        return len(TUNED_KINDS) * N_PEAKS
    if method.startswith(MATCHED):
        return 1  # whose mean LR it takes
    return len(SCALES) if method.endswith(", tuned") else 0


def bootstrap_interval(logs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % bootstrap interval of the geometric mean of ratios.

    Tasks are drawn with replacement, then seeds within each, as the seeds of a task are alike.

    Args:
        logs: Log ratios of each task, one a seed.
    """
    n_tasks, n_seeds = len(logs), max(map(len, logs))
    generator = torch.Generator().manual_seed(0)
    task = torch.randint(n_tasks, (_BOOTSTRAP, n_tasks, 1), generator=generator)
    draws = torch.rand((_BOOTSTRAP, n_tasks, n_seeds), generator=generator)
    counts = torch.tensor([len(row) for row in logs])
    seed = (draws * counts[task]).long()
    padded = torch.tensor([[*row, *[math.nan] * (n_seeds - len(row))] for row in logs])
    means = padded[task, seed].mean((1, 2)).sort().values
    low, high = round(0.025 * _BOOTSTRAP), round(0.975 * _BOOTSTRAP) - 1
    return float(means[low].exp()), float(means[high].exp())


def _mean_of_tasks(logs: Sequence[Sequence[float]]) -> float:
    return sum(sum(row) / len(row) for row in logs) / len(logs)


def _by_task_and_seed(rows: Sequence[RunRecord], logs: Sequence[float]) -> list[list[float]]:
    """Mean over hints of log ratios: of each task, one a seed."""
    groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, log in zip(rows, logs, strict=True):
        groups[row.task][row.seed].append(log)
    return [[sum(x) / len(x) for x in by.values()] for by in groups.values()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _median(values: Sequence[float]) -> float | None:
    return _finite(float(torch.tensor(values).quantile(0.5))) if values else None
