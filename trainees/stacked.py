"""Models of one shape in stacked tensors, the base of the families of batched trainees.

Shape legend: r runs, n batch size, c classes, m predictions of a batch (n, or n times tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedModel(ABC):
    """``r`` models of one shape; gradients by autograd unless a model knows a faster way.

    Args:
        models: The models, whose parameters and buffers are copied.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    pass_size: ClassVar[int] = 8192
    """Examples of all runs that are evaluated in one pass, for the sake of memory."""
    seeds: Sequence[int] = ()
    """One a run, which its own random numbers are drawn from, as of dropout."""

    def __init__(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> None:
        names = [name for name, p in models[0].named_parameters() if p.requires_grad]
        rows = zip(*(trained(m) for m in models), strict=True)
        self.params = [torch.stack([p.detach() for p in row]).to(device, dtype) for row in rows]
        self.grads: list[Tensor] = [torch.zeros_like(p) for p in self.params]
        self.buffers = {
            name: torch.stack([m.get_buffer(name) for m in models]).to(device, buffer.dtype)
            for name, buffer in models[0].named_buffers()
        }
        for name, buffer in self.buffers.items():
            if buffer.is_floating_point():
                self.buffers[name] = buffer.to(dtype)
        self._names = names

    def parts(self, batch_size: int) -> list[tuple[slice, StackedModel]]:
        """Split the runs into parts that are quicker one after another; views of this model.

        Args:
            batch_size: Examples in a batch of each run.

        Returns:
            The runs of each part and their model.
        """
        return [(slice(None), self)]

    @abstractmethod
    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Predict, classes first.

        Args:
            params: The parameters by name, ``(r, ...)`` each.
            x: A batch that all runs share, ``(n, ...)``, or one for each, ``(r, n, ...)``.
            training: Whether batch norm reads the batch, and takes note of it.

        Returns:
            Logits ``(r, c, m)``.
        """

    def predict(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(r, c, m)`` and labels ``(m,)`` of examples that all runs share."""
        params = dict(zip(self._names, self.params, strict=True))
        return self.logits(params, x, training=False), y.flatten()

    def score(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Evaluate on examples that all runs share, ``(n, ...)``.

        Returns:
            Summed losses and right predictions ``(r,)`` each, and the number of predictions.
        """
        logits, labels = self.predict(x, y)
        targets = labels.expand(len(logits), -1)
        losses = F.cross_entropy(logits, targets, reduction="none").sum(1)
        return losses, (logits.argmax(1) == targets).sum(1), y.numel()

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute each run's gradients of its mean loss.

        Args:
            x: As in :meth:`logits`.
            y: Labels, ``(r, n, ...)``.

        Returns:
            The losses, ``(r,)``.
        """
        live = [p.detach().requires_grad_() for p in self.params]
        with torch.enable_grad():
            logits = self.logits(dict(zip(self._names, live, strict=True)), x, training=True)
            loss = F.cross_entropy(logits, y.flatten(1), reduction="none").mean(1)
            self.grads = list(torch.autograd.grad(loss.sum(), live))
        return loss.detach()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each run's linear map: ``(r, m, i)`` by ``(r, o, i)`` to ``(r, m, o)``."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def classify(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each run's last linear map, classes first: ``(r, m, i)`` to ``(r, c, m)``."""
    return torch.baddbmm(bias[:, :, None], weight, x.transpose(1, 2))
