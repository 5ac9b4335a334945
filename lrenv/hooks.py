"""What schedulers that act within optimizer steps share: hooks, and LRs set in place."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer


class StepListener(Protocol):
    """Wants to know of optimizer steps."""

    def before_step(self, loss: Any = None) -> None:
        """Called when gradients are there and parameters not yet changed.

        Args:
            loss: What the closure returned, where the optimizer was given one.
        """

    def after_step(self) -> None:
        """Called behind the update."""


def listen(optimizer: Optimizer, listener: StepListener) -> None:
    """Tell a listener of every optimizer step, without keeping it alive.

    A closure makes its gradients within the step, so the listener is told behind its first call.
    """
    this = weakref.ref(listener)

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (alive := this()) is None:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            return alive.before_step()
        told = False

        def measured() -> Any:
            nonlocal told
            loss = closure()
            if not told:
                told = True
                alive.before_step(loss)
            return loss

        return args[:1], {**kwargs, "closure": measured}

    def after(*_: Any) -> None:
        if (alive := this()) is not None:
            alive.after_step()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a parameter group's LR; a tensor in place, or compiled steps would be compiled anew."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def split_groups(optimizer: Optimizer) -> None:
    """Give every parameter a group of its own, with the settings of the one it was in.

    The optimizer's state stays; states saved from then on have the new groups.
    """
    groups = [
        {**{k: _copy(v) for k, v in group.items()}, "params": [param]}
        for group in optimizer.param_groups
        for param in group["params"]
    ]
    optimizer.param_groups[:] = groups


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
