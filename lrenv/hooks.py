"""What schedulers that act within optimizer steps share: hooks, and LRs set in place."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class StepListener(Protocol):
    """Wants to know of optimizer steps."""

    def before_step(self, loss: Any = None) -> None:
        """Called when gradients are there and parameters not yet changed.

        Args:
            loss: What the closure returned, where the optimizer was given one.
        """

    def after_step(self) -> None:
        """Called behind the update."""


_SILENCED: weakref.WeakSet[Optimizer] = weakref.WeakSet()


@contextmanager
def silenced(optimizer: Optimizer) -> Iterator[None]:
    """Tell no listener of the optimizer's steps within a block."""
    _SILENCED.add(optimizer)
    try:
        yield
    finally:
        _SILENCED.discard(optimizer)


def listen(optimizer: Optimizer, listener: StepListener, first: bool = False) -> None:
    """Tell a listener of every optimizer step, without keeping it alive.

    A closure makes its gradients within the step, so the listener is told behind its first call.

    Args:
        optimizer: The optimizer.
        listener: Who wants to know.
        first: Tell it ahead of all other listeners.
    """
    this = weakref.ref(listener)

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (alive := this()) is None or optimizer in _SILENCED:
            return None
        positional = len(args) > 1
        closure = args[1] if positional else kwargs.get("closure")
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

        if positional:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    def after(*_: Any) -> None:
        if (alive := this()) is not None and optimizer not in _SILENCED:
            alive.after_step()

    pre = optimizer.register_step_pre_hook(before)
    post = optimizer.register_step_post_hook(after)
    weakref.finalize(listener, _remove, pre, post).atexit = False
    if first:
        _put_first(optimizer._optimizer_step_pre_hooks, pre.id)
        _put_first(optimizer._optimizer_step_post_hooks, post.id)


def _remove(*handles: RemovableHandle) -> None:
    for handle in handles:
        handle.remove()


def _put_first(hooks: Any, key: int) -> None:
    ordered: OrderedDict[int, Any] = hooks
    ordered.move_to_end(key, last=False)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, over all its groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a parameter group's LR; a tensor in place, or compiled steps would be compiled anew."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def current_lrs(optimizer: Optimizer) -> list[float | Tensor]:
    """Copies of the LRs of the parameter groups, which later steps do not change."""
    return [_copy(group["lr"]) for group in optimizer.param_groups]


def split_groups(optimizer: Optimizer) -> None:
    """Give every parameter a group of its own, with the settings of the one it was in.

    The optimizer's state stays; states saved from then on have the new groups.
    """
    groups = [
        {
            **{k: _copy(v) for k, v in group.items()},
            **{k: v[i : i + 1] for k, v in group.items() if k in ("params", "param_names")},
        }
        for group in optimizer.param_groups
        for i in range(len(group["params"]))
    ]
    optimizer.param_groups[:] = groups


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
