"""Multi-layer perceptrons, single and stacked with hand-written gradients.

Shape legend: r runs, n batch size, i inputs of a layer, o its outputs, c classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.specs import ACTIVATIONS, RunSpec
from lrenv.trainees.stacked import StackedModel

_PART = 400_000  # numbers of one layer that are worked on at a time, for the sake of the cache

# (derivative times upstream gradient) from the upstream gradient, pre- and post-activation
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda d, z, h: torch.ops.aten.threshold_backward.grad_input(d, h, 0, grad_input=d),
    "tanh": lambda d, z, h: torch.ops.aten.tanh_backward(d, h),
    "gelu": lambda d, z, h: torch.ops.aten.gelu_backward(d, z),
}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class MLPSpec(RunSpec):
    """A run of an MLP.

    Attributes:
        hidden: Width of each hidden layer.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
    """

    kind: ClassVar[str] = "mlp"
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"

    def build(self, dataset: Dataset) -> nn.Sequential:
        """Make the model for a data set: ``(n, i)`` to ``(n, c)``."""
        if not dataset.x_train.is_floating_point():
            raise InputError(
                f"Expected numbers for an MLP, {dataset.name} holds tokens; choose a decoder."
            )
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((dataset.n_features, *self.hidden, dataset.n_classes)):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedMLP:
        """Stack models that :meth:`build` made."""
        return StackedMLP(self.activation, models, dtype, device)


class StackedMLP(StackedModel):
    """MLPs in stacked tensors, features first, ``(r, o, n)``, so that no operation copies.

    Args:
        activation: Name of the activation.
        models: The models.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    pass_size = 131_072

    def __init__(
        self,
        activation: str,
        models: Sequence[nn.Module],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(models, dtype, device)
        self._act, self._derive = _FUNCTIONS[activation], _DERIVATIVES[activation]

    def parts(self, batch_size: int) -> list[tuple[slice, StackedModel]]:
        """Split the runs into parts whose layers fit into a core's cache."""
        widest = max(max(weight.shape[1:]) for weight in self.params[::2])
        n_runs, size = len(self.params[0]), max(1, _PART // (batch_size * widest))
        rows = [slice(first, first + size) for first in range(0, n_runs, size)]
        parts = [(part, copy.copy(self)) for part in rows]
        for part, model in parts:
            model.params, model.grads = (
                [t[part] for t in own] for own in (self.params, self.grads)
            )
        return list(parts)

    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Predict, see :class:`StackedModel`."""
        return self._forward(list(params.values()), x)[0][-1]

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute each run's gradients and return the losses, see :class:`StackedModel`."""
        pre, post = self._forward(self.params, x)
        loss, delta = self.output_gradient(pre[-1], y)
        for layer in reversed(range(len(pre))):
            weight, grad_w, grad_b = self.params[2 * layer], *self.grads[2 * layer : 2 * layer + 2]
            if layer:
                torch.bmm(delta, post[layer - 1].transpose(1, 2), out=grad_w)
            elif x.ndim == 2:
                torch.mm(delta.flatten(0, 1), x, out=grad_w.flatten(0, 1))
            else:
                torch.bmm(delta, x, out=grad_w)
            torch.sum(delta, 2, out=grad_b)
            if layer:
                back = torch.bmm(weight.transpose(1, 2), delta)
                delta = self._derive(back, pre[layer - 1], post[layer - 1])
        return loss

    def output_gradient(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(r,)`` of labels ``(r, n)``, and their gradient in the logits, ``(r, c, n)``."""
        log_p = F.log_softmax(outputs, 1)
        labels = y[:, None]
        loss = -log_p.gather(1, labels).mean((1, 2))
        delta = log_p.exp_()
        delta.scatter_add_(1, labels, delta.new_full((1, 1, 1), -1.0).expand_as(labels))
        return loss, delta.div_(labels.shape[2])

    def _forward(self, params: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pre- and post-activations of the layers, ``(r, o, n)``; ReLU's are the same tensor."""
        pre: list[Tensor] = []
        post: list[Tensor] = []
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            if post:
                z = torch.baddbmm(bias[:, :, None], weight, post[-1])
            elif x.ndim == 2:
                stacked = torch.addmm(bias.flatten()[:, None], weight.flatten(0, 1), x.T)
                z = stacked.view(*bias.shape, len(x))
            else:
                z = torch.baddbmm(bias[:, :, None], weight, x.transpose(1, 2))
            pre.append(z)
            post.append(self._act(z) if len(pre) < len(params) // 2 else z)
        return pre, post
