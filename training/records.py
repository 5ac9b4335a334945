"""Records of evaluated runs, and their summary by method."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrenv.policies.experts import TUNED_KINDS
from lrenv.training.expert_search import N_PEAKS
from lrenv.training.peers import SCALES

TUNED, MATCHED = "tuned expert", "LR-matched constant"
FLOOR = 0.01
"""Least loss that enters a ratio: on data that can be learned by heart, less is rounding."""

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
    curve: dict[str, list[Any]] | None
    val_curve: list[float | None] | None = None

    def relabelled(self, method: str) -> RunRecord:
        """The same run as that of another method."""
        return replace(self, method=method)

    @property
    def time_to_tuned(self) -> float | None:
        """Share of the run until the tuned expert's final loss, infinite if never reached.

        None where validation losses were not taken.
        """
        if self.val_curve is None:
            return None
        target = max(self.reference, FLOOR) * (1.0 + _ROUNDING)
        for k, loss in enumerate(self.val_curve, 1):
            if loss is not None and loss <= target:
                return k / len(self.val_curve)
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


def summarise(method: str, rows: Sequence[RunRecord]) -> dict[str, Any]:
    """Summarise the runs of a method; a diverged run counts as infinitely bad."""
    ratios = torch.tensor([math.inf if r.ratio is None else r.ratio for r in rows]).double()
    logs = torch.log(ratios)
    low, high = bootstrap_interval(_by_task_and_seed(rows, logs))
    times = [t for row in rows if (t := row.time_to_tuned) is not None]
    return {
        "method": method,
        "runs": len(rows),
        "tuning_runs": _tuning_runs(method),
        "median_ratio": _finite(float(ratios.quantile(0.5))),
        "geometric_mean_ratio": _finite(float(logs.mean().exp())),
        "low": _finite(low),
        "high": _finite(high),
        "worst_ratio": _finite(float(ratios.max())),
        "wins": float((ratios < 1.0 - _ROUNDING).double().mean()),
        "profile_area": float((PROFILE_END - ratios.clamp(1.0, PROFILE_END)).mean())
        / (PROFILE_END - 1.0),
        "median_time": _finite(float(torch.tensor(times).quantile(0.5))) if times else None,
        "reached": sum(t < math.inf for t in times) / len(times) if times else None,
        "diverged": sum(r.diverged for r in rows),
        "mean_train_loss": _mean([r.mean_train_loss for r in rows]),
        "val_loss": _mean([r.val_loss for r in rows]),
        "test_accuracy": _mean([r.test_accuracy for r in rows]),
    }


def _tuning_runs(method: str) -> int:
    if method == TUNED:
        return len(TUNED_KINDS) * N_PEAKS
    return len(SCALES) if method.endswith(", tuned") else 0


def bootstrap_interval(logs: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the geometric mean of ratios.

    Tasks are drawn with replacement, then seeds within each, as the seeds of a task are alike.

    Args:
        logs: Log ratios, ``(tasks, seeds)``.
    """
    n_tasks, n_seeds = logs.shape
    generator = torch.Generator().manual_seed(0)
    task = torch.randint(n_tasks, (_BOOTSTRAP, n_tasks, 1), generator=generator)
    seed = torch.randint(n_seeds, (_BOOTSTRAP, n_tasks, n_seeds), generator=generator)
    means = logs[task, seed].mean((1, 2)).sort().values
    low, high = round(0.025 * _BOOTSTRAP), round(0.975 * _BOOTSTRAP) - 1
    return float(means[low].exp()), float(means[high].exp())


def _by_task_and_seed(rows: Sequence[RunRecord], logs: Tensor) -> Tensor:
    """Mean over hints of log ratios, ``(tasks, seeds)``."""
    groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, log in zip(rows, logs.tolist(), strict=True):
        groups[row.task][row.seed].append(log)
    return torch.tensor([[sum(x) / len(x) for x in by.values()] for by in groups.values()])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
