"""MLPs whose data changes in the middle of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.specs import batch_order


@dataclass(frozen=True)
class ChangingMLPSpec(MLPSpec):
    """A run of an MLP on the second half of the training rows first, then on the first half."""

    kind: ClassVar[str] = "changing-mlp"

    def order(self, n_train: int, seed: int) -> Tensor:
        """Indices of the examples of every batch, see :class:`RunSpec`."""
        half, early = n_train // 2, self.total_steps // 2
        if not half or not early:
            raise InputError(
                f"Expected 2 rows and 2 steps or more for data that changes, got {n_train} and "
                f"{self.total_steps}; take more."
            )
        late = batch_order(half, self.batch_size, self.total_steps - early, seed)
        return torch.cat([half + batch_order(half, self.batch_size, early, seed + 1), late])
