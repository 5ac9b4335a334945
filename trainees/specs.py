"""What defines a run of a trainee, but for its data set, seed and LR."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset

if TYPE_CHECKING:
    from lrenv.trainees.stacked import StackedModel

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
"""No policy is trained on ``"rmsprop"``."""

IGNORED = -100
"""Label of what is not predicted, as torch's cross-entropy has it."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer of a trainee; its LR is not part of it.

    Attributes:
        name: A key of ``OPTIMIZERS``.
        momentum: Momentum of SGD and RMSprop, β₁ of Adam.
        beta2: β₂ of Adam, α of RMSprop.
        weight_decay: Added to the gradient, or decoupled (AdamW).
    """

    name: str = "adam"
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise InputError(
                f"Expected an optimizer among {', '.join(OPTIMIZERS)}; got {self.name!r}."
            )

    @classmethod
    def usual(cls, name: str) -> OptimizerSpec:
        """Make it as torch does by default, SGD and RMSprop with a momentum of 0.9."""
        beta2, decay = 0.99 if name == "rmsprop" else 0.999, 0.01 if name == "adamw" else 0.0
        return cls(name, beta2=beta2, weight_decay=decay)

    def build(self, params: Any, lr: float = 1e-3) -> torch.optim.Optimizer:
        """Make the torch optimizer, at an LR that whoever drives the trainee replaces."""
        kwargs: dict[str, Any] = {"weight_decay": self.weight_decay, "lr": lr}
        if self.name in ("adam", "adamw"):
            kwargs["betas"] = (self.momentum, self.beta2)
        else:
            kwargs["momentum"] = self.momentum
        if self.name == "rmsprop":
            kwargs["alpha"] = self.beta2
        return OPTIMIZERS[self.name](params, **kwargs)


@dataclass(frozen=True, kw_only=True)
class RunSpec(ABC):
    """What the runs of all models have in common; a model adds its shape.

    Attributes:
        optimizer: The optimizer.
        batch_size: Examples in a batch.
        total_steps: Length of the run in optimizer steps.
        label_noise: Share of training labels replaced by random ones.
        init_scale: Multiple of torch's initial weights.
        lr_multiplier: The optimizer's LR is that multiple of the scheduled one.
    """

    kind: ClassVar[str]
    keeps_weights: ClassVar[bool] = False
    """Whether runs start from the weights that the model is built with, or new ones are drawn."""
    lockstep: ClassVar[int | None] = None
    """Runs that are trained side by side at most, for the sake of memory."""
    eval_batch: ClassVar[int] = 1000
    """Examples evaluated in one pass, for the sake of memory."""
    val_examples: ClassVar[int | None] = None
    """Examples of the validation loss at a decision; all where it is cheap."""
    optimizer: OptimizerSpec = OptimizerSpec()
    batch_size: int = 64
    total_steps: int = 1000
    label_noise: float = 0.0
    init_scale: float = 1.0
    lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "total_steps"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"Expected {name} of at least 1, got {value}; raise it.")
        if getattr(self, "activation", "relu") not in ACTIVATIONS:
            raise InputError(
                f"Expected an activation among {', '.join(ACTIVATIONS)}; got {self.activation!r}."  # type: ignore[attr-defined]
            )

    @abstractmethod
    def build(self, dataset: Dataset) -> nn.Module:
        """Make the model for a data set; it maps ``(n, ...)`` to logits ``(n, c, ...)``."""

    @abstractmethod
    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedModel:
        """Stack models that :meth:`build` made, to be trained in lockstep."""

    def order(self, n_train: int, seed: int) -> Tensor:
        """Indices of the examples of every batch, ``(total_steps, n)``."""
        return batch_order(n_train, self.batch_size, self.total_steps, seed)

    @property
    def stochastic(self) -> bool:
        """Whether a step draws random numbers of its own, as dropout does."""
        return False

    @contextmanager
    def random_numbers(self, seed: int, step: int, device: torch.device) -> Iterator[None]:
        """Draw a step's random numbers from a run's seed, so that a stopped one goes on exactly."""
        if not self.stochastic:
            yield
            return
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + step)
            yield

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        return F.cross_entropy(model(x), y)

    def score(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed losses of a batch, right predictions among them (or NaN), and their number."""
        logits = model(x)
        hits = (logits.argmax(1) == y).sum()
        return F.cross_entropy(logits, y, reduction="sum"), hits, y.numel()

    def predictions(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(c, m)`` and labels ``(m,)`` of a batch's predictions, of a model of classes."""
        return model(x).transpose(0, 1).flatten(1), y.flatten()

    @property
    def shape(self) -> Self:
        """The specification less what runs in lockstep may differ in."""
        optimizer = OptimizerSpec(self.optimizer.name)
        return replace(
            self, optimizer=optimizer, label_noise=0.0, init_scale=1.0, lr_multiplier=1.0
        )

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values, with its ``kind``."""
        return {"kind": self.kind, **asdict(self)}


def initial_model(spec: RunSpec, dataset: Dataset, seed: int) -> nn.Module:
    """Make the model of a run with weights drawn from its seed.

    As torch's Linear and Conv2d do, matrices and the vectors beside them are uniform within
    ±1/√(inputs); embeddings are normal with variance 1/width; norms stay at 1 and 0. All but
    norms are multiplied by the specification's scale. Models that keep their weights draw them
    themselves, by torch's global generator at the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build(dataset)
    for module in model.modules():
        bound = math.nan
        for param in module.parameters(recurse=False):
            if isinstance(module, _NORMS) or not param.requires_grad:
                continue
            if spec.keeps_weights:
                param.data.mul_(spec.init_scale)
                continue
            if isinstance(module, nn.Embedding):
                draw = torch.randn(param.shape, generator=generator) * param.shape[1] ** -0.5
            else:
                bound = param[0].numel() ** -0.5 if param.ndim > 1 else bound
                uniform = torch.rand(param.shape, generator=generator, dtype=torch.float32)
                draw = (2.0 * uniform - 1.0) * bound
            param.data = draw * spec.init_scale
    return model


def batch_order(n_train: int, batch_size: int, total_steps: int, seed: int) -> Tensor:
    """Indices of the examples of every batch, ``(total_steps, n)``: shuffled epochs in a row."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    n = min(batch_size, n_train)
    epochs = -(-total_steps * n // n_train)
    stream = torch.cat([torch.randperm(n_train, generator=generator) for _ in range(epochs)])
    return stream[: total_steps * n].reshape(total_steps, n)


def steps_per_epoch(n_train: int, batch_size: int) -> float:
    """Optimizer steps in a pass over the training data."""
    return n_train / min(batch_size, n_train)


def noisy_labels(labels: Tensor, n_classes: int, share: float, seed: int) -> Tensor:
    """Replace a share of the labels by uniformly random ones; numbers by those of other rows."""
    if share == 0.0:
        return labels
    generator = torch.Generator().manual_seed(seed + 2_000_003)
    if labels.is_floating_point():
        others = labels[torch.randperm(len(labels), generator=generator)]
        chosen = torch.rand(len(labels), generator=generator) < share
        return torch.where(chosen[:, None], others, labels)
    random = torch.randint(n_classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, random, labels)
