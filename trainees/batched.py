"""Many MLPs of one shape trained in lockstep, in stacked tensors with hand-written gradients.

Shape legend: r runs, n batch size, i inputs of a layer, o its outputs, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.observation import OptimizerTraits
from lrenv.trainees.base import Split
from lrenv.trainees.data import Dataset
from lrenv.trainees.mlp import MLPSpec, batch_order, initial_parameters, noisy_labels

_EPSILON = 1e-8
_EVALUATED = 1000  # examples in one pass, for the sake of memory

# (derivative times upstream gradient) from the upstream gradient, pre- and post-activation
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda d, z, h: d.mul_(h > 0),
    "tanh": lambda d, z, h: torch.ops.aten.tanh_backward(d, h),
    "gelu": lambda d, z, h: torch.ops.aten.gelu_backward(d, z),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


class BatchedMLP:
    """``n_runs`` MLPs of one shape, each with its own LR, seed and optimizer settings.

    A run's losses agree with :class:`lrenv.trainees.mlp.MLPTrainee` of the same specification and
    seed up to rounding. Where all seeds are equal the batches are shared, which is faster.

    Args:
        specs: One specification a run; shapes, optimizer name, batch size and length must agree.
        dataset: The data set.
        seeds: One seed a run.
        dtype: Precision of parameters and data.
        device: Where the runs live.
    """

    def __init__(
        self,
        specs: Sequence[MLPSpec],
        dataset: Dataset,
        seeds: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_same_shape(specs, seeds)
        self.spec, self.dataset, self.n_runs = specs[0], dataset, len(specs)
        self._device, self._dtype = torch.device(device), dtype
        self._act = _ACTIVATIONS[self.spec.activation]
        self._derive = _DERIVATIVES[self.spec.activation]
        draws = {
            (seed, spec.init_scale): initial_parameters(spec, dataset, seed)
            for spec, seed in zip(specs, seeds, strict=True)
        }
        own = [draws[seed, spec.init_scale] for spec, seed in zip(specs, seeds, strict=True)]
        self._params = [torch.stack(rows).to(device, dtype) for rows in zip(*own, strict=True)]
        self._grads = [torch.zeros_like(p) for p in self._params]
        self._optimizer = _StackedOptimizer(specs, self._params, self._grads)
        self._load_data(specs, seeds)
        self._step = 0

    @property
    def total_steps(self) -> int:
        """Length of the runs in optimizer steps."""
        return self.spec.total_steps

    @property
    def traits(self) -> OptimizerTraits:
        """What a policy is told of the optimizers."""
        return self._optimizer.traits

    def parameters(self) -> Sequence[Tensor]:
        """Return the parameters: weights ``(r, o, i)`` and biases ``(r, o)`` in turn."""
        return self._params

    def gradients(self) -> Sequence[Tensor]:
        """Return the gradients, of the parameters' shapes."""
        return self._grads

    def backward(self) -> Tensor:
        """Compute gradients on the next batch of each run and return the losses, ``(r,)``."""
        x, y = self._batch()
        pre, post = self._forward(x)
        log_p = F.log_softmax(pre[-1], -1)
        n = log_p.shape[1]
        loss = -log_p.gather(2, y[..., None]).mean((1, 2))
        delta = log_p.exp_()
        delta.scatter_add_(2, y[..., None], delta.new_full((1, 1, 1), -1.0).expand_as(y[..., None]))
        self._backward(delta.div_(n), pre, post)
        return loss

    def update(self, lr: Tensor) -> None:
        """Take an optimizer step at learning rates ``(r,)``."""
        self._optimizer.step(lr.to(self._dtype))

    def evaluate(self, split: Split, n_examples: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy on a split, ``(r,)`` each; training labels are clean.

        Args:
            split: The split.
            n_examples: Read only that many examples, the first ones.
        """
        if split not in self._splits:
            x, y = self.dataset.split(split)
            self._splits[split] = x.to(self._device, self._dtype), y.to(self._device)
        x, y = (part[:n_examples] for part in self._splits[split])
        loss, hits = torch.zeros(2, self.n_runs, dtype=self._dtype, device=self._device)
        for part, labels in zip(x.split(_EVALUATED), y.split(_EVALUATED), strict=True):
            logits = self._forward(part)[0][-1]
            targets = labels.expand(self.n_runs, -1)
            loss += F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)
            hits += (logits.argmax(2) == targets).sum(1)
        return loss / len(x), hits / len(x)

    def _load_data(self, specs: Sequence[MLPSpec], seeds: Sequence[int]) -> None:
        data, n_train = self.dataset, len(self.dataset.x_train)
        self._x = data.x_train.to(self._device, self._dtype)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        self._shared = len(set(seeds)) == 1
        keys = seeds[:1] if self._shared else seeds
        orders = [
            batch_order(n_train, self.spec.batch_size, self.total_steps, seed) for seed in keys
        ]
        # (r, T, n), with one row for all where the seeds are equal
        self._order = torch.stack(orders).to(self._device)
        labels = [
            noisy_labels(data.y_train, data.n_classes, spec.label_noise, seed)
            for spec, seed in zip(specs, seeds, strict=True)
        ]
        self._labels = torch.stack(labels).to(self._device)

    def _batch(self) -> tuple[Tensor, Tensor]:
        index = self._order[:, self._step]
        self._step += 1
        x = self._x[index[0]] if self._shared else self._x[index]
        return x, self._labels.gather(1, index.expand(self.n_runs, -1))

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pre- and post-activations of all layers; ``x`` is ``(n, i)``, or ``(r, n, i)``."""
        pre, post = [], [x]
        for weight, bias in zip(self._params[::2], self._params[1::2], strict=True):
            if post[-1].ndim == 2:
                stacked = post[-1] @ weight.flatten(0, 1).T
                z = stacked.reshape(len(x), *bias.shape).transpose(0, 1) + bias[:, None]
            else:
                z = torch.baddbmm(bias[:, None], post[-1], weight.transpose(1, 2))
            pre.append(z)
            post.append(self._act(z))
        return pre, post

    def _backward(self, delta: Tensor, pre: list[Tensor], post: list[Tensor]) -> None:
        """Fill the gradients from the loss's derivative by the logits, ``(r, n, c)``."""
        for layer in reversed(range(len(pre))):
            grad_w, grad_b = self._grads[2 * layer], self._grads[2 * layer + 1]
            inputs = post[layer]
            if inputs.ndim == 2:
                flat = delta.transpose(0, 1).reshape(len(inputs), -1)
                torch.mm(flat.T, inputs, out=grad_w.flatten(0, 1))
            else:
                torch.bmm(delta.transpose(1, 2), inputs, out=grad_w)
            torch.sum(delta, 1, out=grad_b)
            if layer:
                delta = torch.bmm(delta, self._params[2 * layer])
                delta = self._derive(delta, pre[layer - 1], post[layer])


class _StackedOptimizer:
    """SGD with momentum, Adam and AdamW on stacked parameters, as torch.optim defines them."""

    def __init__(
        self, specs: Sequence[MLPSpec], params: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> None:
        self._name = specs[0].optimizer.name
        if self._name not in ("sgd", "adam", "adamw"):
            raise InputError(f"Expected the optimizer sgd, adam or adamw; got {self._name!r}.")
        self._params, self._grads = params, grads

        def column(name: str) -> Tensor:
            return params[0].new_tensor([getattr(spec.optimizer, name) for spec in specs])

        self._momentum, self._beta2 = column("momentum"), column("beta2")
        self._decay = column("weight_decay")
        self._decays = any(spec.optimizer.weight_decay for spec in specs)
        adaptive = torch.full_like(self._momentum, float(self._name != "sgd")).float()
        self.traits = OptimizerTraits(
            torch.ones_like(adaptive), adaptive, self._momentum.to(torch.float32)
        )
        self._first = [torch.zeros_like(p) for p in params]
        self._second = [] if self._name == "sgd" else [torch.zeros_like(p) for p in params]
        self._step = 0

    def step(self, lr: Tensor) -> None:
        """Update all parameters at learning rates ``(r,)``."""
        self._step += 1
        for k, (param, grad) in enumerate(zip(self._params, self._grads, strict=True)):
            tail = (-1,) + (1,) * (param.ndim - 1)
            rate, decay, beta1 = (v.view(tail) for v in (lr, self._decay, self._momentum))
            if self._decays and self._name == "adamw":
                param.mul_(1 - rate * decay)
            elif self._decays:
                grad = grad + decay * param
            if self._name == "sgd":
                param.addcmul_(self._first[k].mul_(beta1).add_(grad), rate, value=-1)
                continue
            beta2 = self._beta2.view(tail)
            first = self._first[k].lerp_(grad, (1 - beta1).expand_as(grad))
            second = self._second[k].lerp_(grad.square(), (1 - beta2).expand_as(grad))
            correction = (1 - beta2**self._step).sqrt()
            scale = rate * correction / (1 - beta1**self._step)
            root = second.sqrt().add_(_EPSILON * correction)
            param.addcmul_(first.div(root), scale, value=-1)


def _check_same_shape(specs: Sequence[MLPSpec], seeds: Sequence[int]) -> None:
    if not specs or len(specs) != len(seeds):
        raise InputError(
            f"Expected one seed a run and at least one run, got {len(specs)} specifications and "
            f"{len(seeds)} seeds."
        )
    shapes = {
        (s.hidden, s.activation, s.optimizer.name, s.batch_size, s.total_steps) for s in specs
    }
    for first, other in pairwise(sorted(shapes)):
        raise InputError(
            "Expected runs of one shape (hidden, activation, optimizer, batch size, length), got "
            f"{first} and {other}; put different shapes in different batches."
        )
