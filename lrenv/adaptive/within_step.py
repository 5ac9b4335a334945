"""What the adaptive schedulers share that act within ``optimizer.step()``."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lrenv.errors import InputError
from lrenv.hooks import current_lrs, listen


class WithinStep(LRScheduler):
    """A scheduler whose work is done by the optimizer's hooks; ``step()`` is for hosts alone."""

    state: ClassVar[tuple[str, ...]]
    """Attributes that :meth:`state_dict` has beside torch's counters."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the LR of each parameter group, as it is."""
        return current_lrs(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values; LRs are in the optimizer's."""
        names = (*self.state, "last_epoch", "_step_count")
        return {name: copy.copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            InputError: It is the state of something else.
        """
        needed, given = set(self.state_dict()), set(state_dict)
        if needed != given:
            raise InputError(
                f"Expected the state of a {type(self).__name__}, got that of something else; it "
                f"lacks {sorted(needed - given)} and has {sorted(given - needed)}."
            )
        for name, value in state_dict.items():
            setattr(self, name, copy.copy(value))

    def before_step(self, loss: Any = None) -> None:
        """See :class:`lrenv.hooks.StepListener`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """See :class:`lrenv.hooks.StepListener`."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy; its optimizer is a copy too, without our hooks."""
        vars(self).update(state)
        listen(self.optimizer, self)
