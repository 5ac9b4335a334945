"""Many trainees of one shape trained in lockstep, in stacked tensors.

Shape legend: r runs, T steps, n batch size, c classes, m predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.base import Split
from lrenv.trainees.data import Dataset
from lrenv.trainees.specs import (
    RunSpec,
    initial_model,
    noisy_labels,
    steps_per_epoch,
)
from lrenv.trainees.stacked_optimizer import StackedOptimizer
from lrenv.traits import OptimizerTraits


class BatchedTrainee:
    """Runs of one shape, each with its own LR, seed and settings of the optimizer.

    A run's losses agree with :class:`lrenv.trainees.single.SingleTrainee` of the same
    specification and seed up to rounding. Where all seeds are equal the batches are shared, which
    is faster.

    Args:
        specs: One specification a run; their ``shape`` must agree.
        dataset: The data set.
        seeds: One seed a run.
        dtype: Precision of parameters and data.
        device: Where the runs live.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        dataset: Dataset,
        seeds: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_same_shape(specs, seeds)
        self.spec, self.dataset, self.n_runs = specs[0], dataset, len(specs)
        self._device, self._dtype = torch.device(device), dtype
        draws = {
            (seed, spec.init_scale): initial_model(spec, dataset, seed)
            for spec, seed in zip(specs, seeds, strict=True)
        }
        models = [draws[seed, spec.init_scale] for spec, seed in zip(specs, seeds, strict=True)]
        self._model = self.spec.stack(models, dtype, self._device)
        self._model.seeds = seeds
        self._optimizer = StackedOptimizer(specs, self._model.params)
        self._load_data(specs, seeds)
        self._parts = [(slice(None), self._model)]
        if not self._shared and self._device.type == "cpu":
            self._parts = self._model.parts(self.spec.batch_size)
        self._step = 0

    @property
    def total_steps(self) -> int:
        """Length of the runs in optimizer steps."""
        return self.spec.total_steps

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in a pass over the training data."""
        return steps_per_epoch(len(self.dataset.x_train), self.spec.batch_size)

    @property
    def traits(self) -> OptimizerTraits:
        """What a policy is told of the optimizers."""
        return self._optimizer.traits

    def parameters(self) -> Sequence[Tensor]:
        """Return the parameters, ``(r, ...)`` each."""
        return self._model.params

    def gradients(self) -> Sequence[Tensor]:
        """Return the gradients, of the parameters' shapes."""
        return self._model.grads

    def backward(self) -> Tensor:
        """Compute gradients on the next batch of each run and return the losses, ``(r,)``."""
        index = self._order[:, self._step]
        self._step += 1
        losses = []
        for runs, model in self._parts:
            own = index if self._shared else index[runs]
            x = self._x.index_select(0, own.flatten())
            if not self._shared:
                x = x.unflatten(0, own.shape)
            rows = own + self._first_row[runs]
            labels = self._labels.index_select(0, rows.flatten()).unflatten(0, rows.shape)
            losses.append(model.backward(x, labels))
        return torch.cat(losses)

    def update(self, lr: Tensor) -> None:
        """Take an optimizer step at learning rates ``(r,)``."""
        self._optimizer.step(lr, self._model.grads)

    def evaluate(self, split: Split, n_examples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy on a split, ``(r,)`` each; training labels are clean.

        Args:
            split: The split.
            n_examples: Read only that many examples, the first ones.
        """
        loss, hits = torch.zeros(2, self.n_runs, dtype=self._dtype, device=self._device)
        count = 0
        for part, labels in self._passes(split, n_examples):
            losses, right, n = self._model.score(part, labels)
            loss, hits, count = loss + losses, hits + right, count + n
        return loss / count, hits / count

    def logits(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits ``(r, c, m)`` and labels ``(m,)`` of a split, batch by batch.

        For trainees that classify, which are those whose accuracy is a number.
        """
        for x, y in self._passes(split):
            yield self._model.predict(x, y)

    def _passes(
        self, split: Split, n_examples: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of a split in parts that fit into memory."""
        if split not in self._splits:
            x, y = self.dataset.split(split)
            self._splits[split] = self._place(x), y.to(self._device)
        x, y = (part[:n_examples] for part in self._splits[split])
        size = max(1, min(self._model.pass_size // self.n_runs, self.spec.eval_batch))
        return zip(x.split(size), y.split(size), strict=True)

    def _place(self, x: Tensor) -> Tensor:
        """Bring inputs to the device, and to the precision unless they are tokens."""
        return x.to(self._device, self._dtype if x.is_floating_point() else x.dtype)

    def _load_data(self, specs: Sequence[RunSpec], seeds: Sequence[int]) -> None:
        data, n_train = self.dataset, len(self.dataset.x_train)
        self._x = self._place(data.x_train)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._shared = len(set(seeds)) == 1
        keys = seeds[:1] if self._shared else seeds
        orders = [self.spec.order(n_train, seed) for seed in keys]
        # (r, T, n), with one row for all where the seeds are equal
        self._order = torch.stack(orders).to(self._device)
        labels = [
            noisy_labels(data.y_train, data.n_classes, spec.label_noise, seed)
            for spec, seed in zip(specs, seeds, strict=True)
        ]
        self._labels = torch.cat(labels).to(self._device)
        self._first_row = n_train * torch.arange(self.n_runs, device=self._device)[:, None]


def _check_same_shape(specs: Sequence[RunSpec], seeds: Sequence[int]) -> None:
    if not specs or len(specs) != len(seeds):
        raise InputError(
            f"Expected one seed a run and at least one run, got {len(specs)} specifications and "
            f"{len(seeds)} seeds."
        )
    for spec in specs:
        if spec.shape != specs[0].shape:
            raise InputError(
                "Expected runs of one shape (model, optimizer, batch size, length), got "
                f"{specs[0].shape} and {spec.shape}; put different shapes in different batches."
            )
