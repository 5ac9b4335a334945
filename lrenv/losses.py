"""The losses that a job reports between its optimizer steps."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.observation import finite_mean

_UNKNOWN_LOSS = 1.0


class LossReports:
    """Takes in a job's losses, and gives out one an optimizer step.

    Args:
        like: A tensor ``(1,)`` of the type and device that losses get.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._given: list[Tensor] = []
        self._last: Tensor | None = None
        self._closure: Tensor | None = None
        self._val: float | None = None
        self._seen = _Seen(None)

    def add(self, loss: Tensor | float | None, val_loss: Tensor | float | None) -> None:
        """Take in a training loss and a validation loss, scalars, where they are given."""
        if loss is not None:
            # a copy, as jobs may write the next loss into the same memory
            self._given.append(_scalar(loss, "training").reshape(1).to(self._like, copy=True))
        if val_loss is not None:
            self._val = float(_scalar(val_loss, "validation"))

    def is_again(self, loss: Tensor | float | None) -> bool:
        """Whether a loss is the very one that this was last asked about."""
        again, self._seen = self._seen.is_again(loss), _Seen(loss)
        return again

    def set_closure(self, loss: Any) -> None:
        """Take in what the closure of the optimizer step returned, or None."""
        known = isinstance(loss, Tensor | float)
        self._closure = torch.as_tensor(loss).detach() if known else None

    def drop(self) -> None:
        """Forget the training losses since the last step."""
        self._given = []

    def take(self) -> Tensor:
        """Mean of the finite losses since the last step, or the closure's, or else the last one."""
        if self._given:
            several = len(self._given) > 1
            # A loss that is not finite may be of a step that was skipped.
            self._last = finite_mean(torch.stack(self._given, 1)) if several else self._given[0]
            self.drop()
        elif self._closure is not None:
            self._last = self._closure.reshape(1).to(self._like, copy=True)
        if self._last is None:
            warnings.warn(
                "Expected a training loss, got none: the policy decides without it. Call "
                "scheduler.step(loss) after every optimizer step, not after every epoch.",
                stacklevel=4,
            )
            self._last = torch.full_like(self._like, _UNKNOWN_LOSS)
        return self._last

    def take_val(self) -> float | None:
        """The last validation loss, once."""
        value, self._val = self._val, None
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "losses": list(self._given),
            "loss": self._last,
            "own_loss": self._closure,
            "val_loss": self._val,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._given = [loss.to(self._like) for loss in state_dict["losses"]]
        last = state_dict["loss"]
        self._last = None if last is None else last.to(self._like)
        self._closure, self._val = state_dict["own_loss"], state_dict["val_loss"]


def _scalar(value: Tensor | float, kind: str) -> Tensor:
    """A loss as a tensor of one number."""
    if not isinstance(value, Tensor | float) and not hasattr(value, "dtype"):
        raise InputError(
            f"Expected a {kind} loss, a tensor or float, got {value!r}; step() takes no epoch."
        )
    loss = torch.as_tensor(value).detach()
    if loss.numel() != 1:
        raise InputError(
            f"Expected a scalar {kind} loss, got the shape {tuple(loss.shape)}; pass its mean."
        )
    return loss


class _Seen:
    """Knows a loss again: the same object, not written to since; keeps no tensor alive."""

    def __init__(self, loss: Tensor | float | None) -> None:
        self._this: Callable[[], Tensor | float | None] = lambda: None
        self._version = 0
        if not isinstance(loss, Tensor):
            self._this = lambda: loss
        elif not loss.is_inference():
            self._this, self._version = weakref.ref(loss), loss._version

    def is_again(self, loss: Tensor | float | None) -> bool:
        """Whether a loss is the one seen."""
        if loss is None or self._this() is not loss:
            return False
        return not isinstance(loss, Tensor) or loss._version == self._version

    def __reduce__(self) -> tuple[type[_Seen], tuple[None]]:
        """Copy and pickle as knowing none."""
        return _Seen, (None,)
