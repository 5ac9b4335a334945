"""Multi-layer perceptrons: the specification, their initialisation, and a single trainee in torch.

Shape legend: r runs, n batch size, d inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.observation import OptimizerTraits, traits_of
from lrenv.trainees.base import Split
from lrenv.trainees.data import Dataset

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer of a trainee; its LR is not part of it.

    Attributes:
        name: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: Momentum of SGD, β₁ of Adam.
        beta2: β₂ of Adam.
        weight_decay: Added to the gradient (SGD, Adam) or decoupled (AdamW).
    """

    name: str = "adam"
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def build(self, params: Any, lr: float = 1e-3) -> torch.optim.Optimizer:
        """Make the torch optimizer, at an LR that whoever drives the trainee replaces."""
        if self.name not in OPTIMIZERS:
            raise InputError(
                f"Expected an optimizer among {', '.join(OPTIMIZERS)}; got {self.name!r}."
            )
        kwargs: dict[str, Any] = {"weight_decay": self.weight_decay, "lr": lr}
        if self.name == "sgd":
            kwargs["momentum"] = self.momentum
        else:
            kwargs["betas"] = (self.momentum, self.beta2)
        return OPTIMIZERS[self.name](params, **kwargs)


@dataclass(frozen=True)
class MLPSpec:
    """Everything that defines a run of an MLP, but for its data set, seed and LR.

    Attributes:
        hidden: Width of each hidden layer.
        activation: ``"relu"``, ``"tanh"`` or ``"gelu"``.
        optimizer: The optimizer.
        batch_size: Examples in a batch.
        total_steps: Length of the run in optimizer steps.
        label_noise: Share of training labels replaced by random ones.
        init_scale: Multiple of torch's initial weights.
    """

    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    optimizer: OptimizerSpec = OptimizerSpec()
    batch_size: int = 64
    total_steps: int = 1000
    label_noise: float = 0.0
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"Expected an activation among {', '.join(ACTIVATIONS)}; got {self.activation!r}."
            )
        for name in ("batch_size", "total_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} of at least 1, got {getattr(self, name)}.")

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MLPSpec:
        """Read what :meth:`to_json` returned."""
        optimizer = OptimizerSpec(**data["optimizer"])
        return cls(**{**data, "hidden": tuple(data["hidden"]), "optimizer": optimizer})


def initial_parameters(spec: MLPSpec, dataset: Dataset, seed: int) -> list[Tensor]:
    """Draw weights ``(out, in)`` and biases ``(out,)`` as torch's Linear does, times a scale."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (dataset.x_train.shape[1], *spec.hidden, dataset.n_classes)
    params = []
    for n_in, n_out in pairwise(sizes):
        bound = n_in**-0.5
        for shape in ((n_out, n_in), (n_out,)):
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32)
            params.append((2.0 * uniform - 1.0) * bound * spec.init_scale)
    return params


def batch_order(n_train: int, batch_size: int, total_steps: int, seed: int) -> Tensor:
    """Indices of the examples of every batch, ``(total_steps, n)``: shuffled epochs in a row."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    n = min(batch_size, n_train)
    epochs = -(-total_steps * n // n_train)
    stream = torch.cat([torch.randperm(n_train, generator=generator) for _ in range(epochs)])
    return stream[: total_steps * n].reshape(total_steps, n)


def noisy_labels(labels: Tensor, n_classes: int, share: float, seed: int) -> Tensor:
    """Replace a share of the labels by uniformly random ones."""
    if share == 0.0:
        return labels
    generator = torch.Generator().manual_seed(seed + 2_000_003)
    random = torch.randint(n_classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, random, labels)


class MLPTrainee:
    """One MLP in plain torch: ``nn.Sequential``, ``torch.optim``, autograd.

    Args:
        spec: The specification.
        dataset: The data set.
        seed: Seed of the weights, the order of the data and the label noise.
    """

    n_runs = 1

    def __init__(self, spec: MLPSpec, dataset: Dataset, seed: int) -> None:
        self.spec, self.dataset = spec, dataset
        self.model = _build_model(spec, dataset, seed)
        self.optimizer = spec.optimizer.build(self.model.parameters())
        self._params = list(self.model.parameters())
        n_train = len(dataset.x_train)
        self._order = batch_order(n_train, spec.batch_size, spec.total_steps, seed)
        self._labels = noisy_labels(dataset.y_train, dataset.n_classes, spec.label_noise, seed)
        self._step = 0

    @property
    def total_steps(self) -> int:
        """Length of the run in optimizer steps."""
        return self.spec.total_steps

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
        logits = self.model(self.dataset.x_train[index])
        loss = F.cross_entropy(logits, self._labels[index])
        loss.backward()
        return loss.detach()[None]

    def update(self, lr: Tensor) -> None:
        """Take an optimizer step at learning rate ``(1,)``."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(lr)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return model, optimizer and position in the data as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
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
        logits = self.model(x)
        accuracy = (logits.argmax(1) == y).float().mean()
        return F.cross_entropy(logits, y)[None], accuracy[None]


def _build_model(spec: MLPSpec, dataset: Dataset, seed: int) -> nn.Sequential:
    params = iter(initial_parameters(spec, dataset, seed))
    sizes = (dataset.x_train.shape[1], *spec.hidden, dataset.n_classes)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        linear = nn.Linear(n_in, n_out)
        linear.weight = nn.Parameter(next(params))
        linear.bias = nn.Parameter(next(params))
        layers += [linear, ACTIVATIONS[spec.activation]()]
    return nn.Sequential(*layers[:-1])
