"""Any models of one shape, one after another, over stacked parameters.

Shape legend: r runs, n batch size, c classes, m predictions of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lrenv.trainees.specs import RunSpec
from lrenv.trainees.stacked import StackedModel, trained


class LoopedModel(StackedModel):
    """Models that no hand-shaped family stacks; their parameters are views of stacked ones.

    Args:
        spec: The specification of the runs.
        models: The models, which are copied where one stands for several runs.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    def __init__(
        self, spec: RunSpec, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> None:
        seen: set[int] = set()
        self._spec, self._models = spec, []
        self._step = 0
        for model in models:
            own = copy.deepcopy(model) if id(model) in seen else model
            seen.add(id(model))
            self._models.append(own.to(device, dtype))
        rows = zip(*(trained(m) for m in self._models), strict=True)
        self.params = [torch.stack([p.detach() for p in row]) for row in rows]
        self.grads = [torch.zeros_like(p) for p in self.params]
        for run, model in enumerate(self._models):
            for param, stack, grad in zip(trained(model), self.params, self.grads, strict=True):
                param.data, param.grad = stack[run], grad[run]

    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Refuse: the models hold their parameters themselves."""
        raise NotImplementedError("Expected a call of backward or score of models in a loop.")

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute each run's gradients and return the losses, see :class:`StackedModel`."""
        losses = []
        self._step += 1
        for grad in self.grads:
            grad.zero_()
        for run, model in enumerate(self._models):
            numbers = self._spec.random_numbers(self.seeds[run], self._step, y.device)
            with torch.enable_grad(), numbers:
                loss = self._spec.loss(model, x if x.ndim == 2 else x[run], y[run])
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def predict(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of the predictions that count, see :class:`StackedModel`."""
        rows = []
        for model in self._models:
            model.eval()
            rows.append(self._spec.predictions(model, x, y))
            model.train()
        return torch.stack([logits for logits, _ in rows]), rows[0][1]

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed losses and hits of each run on shared examples, see :class:`StackedModel`."""
        rows = []
        for model in self._models:
            model.eval()
            rows.append(self._spec.score(model, x, y))
            model.train()
        losses, hits, counts = zip(*rows, strict=True)
        return torch.stack(losses), torch.stack(hits), counts[0]
