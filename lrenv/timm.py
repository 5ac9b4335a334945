"""``LearnedLR`` as timm's training loop calls a scheduler.

```python
scheduler = TimmScheduler(LearnedLR(optimizer, total_steps, steps_per_epoch=per_epoch))
scheduler.step_update(num_updates, metric=loss)  # behind every optimizer step
scheduler.step(epoch, metric)  # at the end of an epoch: does nothing
```
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrenv.scheduler import LearnedLR


class TimmScheduler:
    """Takes timm's two calls; the LR is set behind optimizer steps alone.

    Args:
        scheduler: The scheduler.
    """

    def __init__(self, scheduler: LearnedLR) -> None:
        self.scheduler = scheduler

    def step_update(self, num_updates: int, metric: Tensor | float | None = None) -> None:
        """Report the optimizer step just taken, with its training loss."""
        self.scheduler.step(metric)

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing: timm's metric of an epoch is one that people choose, and no loss."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.scheduler.load_state_dict(state_dict)
