"""One trainee in plain torch: a module, ``torch.optim``, autograd.

Shape legend: n batch size, c classes, m predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lrenv.trainees.base import Split
from lrenv.trainees.data import Dataset
from lrenv.trainees.specs import (
    RunSpec,
    initial_model,
    noisy_labels,
    steps_per_epoch,
)
from lrenv.trainees.stacked import trained
from lrenv.traits import OptimizerTraits, traits_of


class SingleTrainee:
    """One run of a model.

    Args:
        spec: The specification.
        dataset: The data set.
        seed: Seed of the weights, the order of the data and the label noise.
        device: Where the run lives.
    """

    n_runs = 1

    def __init__(
        self, spec: RunSpec, dataset: Dataset, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.dataset, self._seed = spec, dataset.to(device), seed
        self.model = initial_model(spec, dataset, seed).to(device)
        self.optimizer = spec.optimizer.build(trained(self.model))
        self._params = trained(self.model)
        n_train = len(dataset.x_train)
        self._order = spec.order(n_train, seed).to(device)
        labels = noisy_labels(dataset.y_train, dataset.n_classes, spec.label_noise, seed)
        self._labels = labels.to(device)
        self._step = 0

    @property
    def total_steps(self) -> int:
        """Length of the run in optimizer steps."""
        return self.spec.total_steps

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in a pass over the training data."""
        return steps_per_epoch(len(self.dataset.x_train), self.spec.batch_size)

    @property
    def traits(self) -> OptimizerTraits:
        """What a policy is told of the optimizer."""
        return traits_of(self.optimizer)

    def parameters(self) -> Sequence[Tensor]:
        """Return the parameters, ``(1, ...)`` each, sharing memory with the model's."""
        return [p.detach()[None] for p in self._params]

    def gradients(self) -> Sequence[Tensor]:
        """Return the gradients, ``(1, ...)`` each."""
        return [p.grad[None] for p in self._params if p.grad is not None]

    def backward(self) -> Tensor:
        """Compute gradients on the next batch and return its loss, ``(1,)``."""
        index = self._order[self._step]
        self._step += 1
        self.optimizer.zero_grad()
        with self.spec.random_numbers(self._seed, self._step, self._order.device):
            loss = self.spec.loss(self.model, self.dataset.x_train[index], self._labels[index])
        loss.backward()
        return loss.detach()[None]

    def batch_loss(self) -> Tensor:
        """Compute the loss of the batch that :meth:`backward` was last called on, a scalar."""
        index = self._order[self._step - 1]
        return self.spec.loss(self.model, self.dataset.x_train[index], self._labels[index])

    def update(self, lr: Tensor) -> None:
        """Take an optimizer step at learning rate ``(1,)``."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(lr) * self.spec.lr_multiplier
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return model, optimizer and position in the data as tensors and plain values.

        Weights that never train, which the specification names, are left out.
        """
        own = {id(p) for p in self._params}
        named = self.model.named_parameters(remove_duplicate=False)  # tied ones have two names
        frozen = {name for name, p in named if id(p) not in own}
        state = self.model.state_dict()
        return {
            "model": {name: value for name, value in state.items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]

    @torch.no_grad()
    def evaluate(self, split: Split, n_examples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy on a split, ``(1,)`` each; training labels are clean.

        Args:
            split: The split.
            n_examples: Read only that many examples, the first ones.
        """
        x, y = (part[:n_examples] for part in self.dataset.split(split))
        size = self.spec.eval_batch
        self.model.eval()
        rows = [
            self.spec.score(self.model, *part)
            for part in zip(x.split(size), y.split(size), strict=True)
        ]
        self.model.train()
        losses, hits, counts = zip(*rows, strict=True)
        total = torch.stack([torch.stack(losses).sum(), torch.stack(hits).sum()]) / sum(counts)
        return total[:1], total[1:]

    @torch.no_grad()
    def logits(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits ``(1, c, m)`` and labels ``(m,)`` of a split, batch by batch.

        For trainees that classify, which are those whose accuracy is a number.
        """
        size = self.spec.eval_batch
        for x, y in zip(*(part.split(size) for part in self.dataset.split(split)), strict=True):
            self.model.eval()
            logits, labels = self.spec.predictions(self.model, x, y)
            self.model.train()
            yield logits[None], labels
