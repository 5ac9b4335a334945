"""The trainee protocol: what the environments, searches and evaluations need of a trainee."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from lrenv.controller import Run
from lrenv.trainees.specs import RunSpec
from lrenv.traits import OptimizerTraits

Split = Literal["train", "val", "test"]


class Trainee(Run, Protocol):
    """A model, its data, loss and optimizer, to be trained; or ``n_runs`` of them in lockstep."""

    spec: RunSpec
    """What the runs have in common."""

    @property
    def n_runs(self) -> int:
        """Number of runs in lockstep."""

    @property
    def total_steps(self) -> int:
        """Length of a run in optimizer steps."""

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in a pass over the training data."""

    @property
    def traits(self) -> OptimizerTraits:
        """What a policy is told of the optimizer."""

    def evaluate(self, split: Split, n_examples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy, ``(r,)`` each, on the first examples of a split or all."""
