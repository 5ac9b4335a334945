"""The observation of the source: the raw window.

Shape legend: r runs, l layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrenv.window import Interval, StepWindow, pad_left

CLASSIC_CLIP = 1e3
"""Bound of every classic feature."""


class ClassicObserver:
    """The observation of the source: the raw window, ``(r, 512, l + 4)``.

    Each optimizer step is [left fraction, train loss, val loss, l layer gradient norms, log10 LR],
    left-padded with the first value. A job without a validation loss repeats the training loss.
    Source: the project proposal "Learned Learning Rate Scheduler"; it feeds the LR itself, here
    its logarithm keeps the input in the range it was trained on.
    """

    def __init__(self) -> None:
        self.window = StepWindow()

    def update(self, interval: Interval, start_lr: Tensor | None) -> None:
        """Take in an interval; the classic observation has no reference LR."""
        self.window.extend(interval)

    def padded(self) -> Tensor:
        """Return the window padded to its full length, ``(r, 512, l + 4)``."""
        window = self.window
        val = torch.where(window.val_loss.isnan(), window.loss, window.val_loss)
        left = window.left.to(window.loss.dtype).expand_as(window.loss)
        columns = torch.stack([left, window.loss, val], -1)
        lr = torch.log10(window.lr)[..., None]
        rows = pad_left(torch.cat([columns, window.grad_norm, lr], -1))
        return torch.nan_to_num(rows, 0.0, CLASSIC_CLIP, -CLASSIC_CLIP).clamp(
            -CLASSIC_CLIP, CLASSIC_CLIP
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {"window": self.window.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.window.load_state_dict(state["window"])
