"""LRBench's utility metrics of a classifier (LRBench++, arXiv 2309.08859), from its logits.

Shape legend: r runs, c classes, m predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

NOTE = (
    "On test data. Confidence: the mean probability of right predictions, in percent, with its "
    "standard deviation; CDAC: the deviation of its means by class. Steps and seconds: the median "
    "until the validation loss is at most the tuned expert's final one; runs in lockstep, which "
    "those of experts are, have no time of their own. Test − train loss: the mean distance of the "
    "final losses on test data and on as many training examples."
)
"""What the table of metrics holds."""


@dataclass(frozen=True)
class Utility:
    """How good and how sure the predictions of a run are; None where none of them is right.

    Deviations are those of the whole population. That the means of CDAC are over right predictions
    is derived, as the source means confidence on these throughout.

    Attributes:
        top1: Share of predictions whose label has the largest logit.
        top5: Share of predictions whose label is among the 5 largest logits.
        confidence: Mean probability of the predicted class, over right predictions.
        confidence_std: Its standard deviation.
        cdac: Confidence deviation across classes: the standard deviation of the classes' mean
            confidences, each over the right predictions of that class; classes without any are
            left out.
    """

    top1: float
    top5: float
    confidence: float | None
    confidence_std: float | None
    cdac: float | None


def utility(logits: Tensor, labels: Tensor) -> Utility | None:
    """Measure the predictions of one run; None where a logit is not finite.

    Args:
        logits: ``(c, m)``.
        labels: ``(m,)``.
    """
    return utilities([(logits[None], labels)])[0]


def utilities(batches: Iterable[tuple[Tensor, Tensor]]) -> list[Utility | None]:
    """Measure the predictions of several runs, which come in batches, so that few are in memory.

    Args:
        batches: Logits ``(r, c, m)`` and labels ``(m,)``; m may differ.

    Returns:
        One a run, None where a logit of it is not finite.
    """
    parts = [(label_ranks(*batch), confidences(batch[0]), batch[1]) for batch in batches]
    ranks, sure = (torch.cat(column, 1).cpu() for column in list(zip(*parts, strict=True))[:2])
    labels = torch.cat([part[2] for part in parts]).cpu()
    return [
        _utility(rank, own, labels) if own.isfinite().all() else None
        for rank, own in zip(ranks, sure, strict=True)
    ]


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of classes that are predicted ahead of the label, ``(r, m)``; 0 is a right prediction.

    Of equal logits the class with the smaller number is ahead.

    Args:
        logits: ``(r, c, m)``.
        labels: ``(m,)``.
    """
    index = labels.expand(len(logits), 1, -1)
    own = logits.gather(1, index)
    earlier = torch.arange(logits.shape[1], device=logits.device)[:, None] < index
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def confidences(logits: Tensor) -> Tensor:
    """Probability of the predicted class, ``(r, m)``, from logits ``(r, c, m)``."""
    return torch.exp(logits.amax(1).double() - logits.double().logsumexp(1))


def _utility(ranks: Tensor, confidence: Tensor, labels: Tensor) -> Utility:
    right = ranks == 0
    top1, top5 = (float((ranks < k).double().mean()) for k in (1, 5))
    if not right.any():
        return Utility(top1, top5, None, None, None)
    sure, classes = confidence[right], labels[right]
    present = classes.unique()
    means = torch.stack([sure[classes == label].mean() for label in present])
    stds = (float(x.std(correction=0)) for x in (sure, means))
    return Utility(top1, top5, float(sure.mean()), *stds)
