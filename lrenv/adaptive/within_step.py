"""What the adaptive schedulers share that act within ``optimizer.step()``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lrenv.hooks import listen


class WithinStep(LRScheduler):
    """A scheduler whose work is done by the optimizer's hooks; ``step()`` is for hosts alone."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the LR of each parameter group, as it is."""
        return [group["lr"] for group in self.optimizer.param_groups]

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
