"""Language models fine-tuned by LoRA (Hu et al. 2022), on the response to a prompt.

Shape legend: n batch size, t tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.language_model import SMOLLM2, import_llm, load_language_model
from lrenv.trainees.looped import LoopedModel
from lrenv.trainees.specs import IGNORED, OptimizerSpec, RunSpec

_ADAMW = OptimizerSpec("adamw")
# Settings of models whose logits are more than the last layer's product.
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class LoRASpec(RunSpec):
    """A run of LoRA on a frozen language model.

    Attributes:
        model: Name of the model, see ``lrenv.trainees.language_model``.
        rank: Rank of the update of each matrix.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Dropout of the input of the update.
        targets: Names of the modules to which an update is added.
        quantized: Keep the frozen weights in 4 bits (QLoRA).
    """

    kind: ClassVar[str] = "lora"
    keeps_weights: ClassVar[bool] = True
    lockstep: ClassVar[int | None] = 1
    eval_batch: ClassVar[int] = 8
    val_examples: ClassVar[int | None] = 16
    optimizer: OptimizerSpec = _ADAMW
    batch_size: int = 4
    model: str = SMOLLM2
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    quantized: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"Expected a rank of at least 1, got {self.rank}; raise it.")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"Expected a dropout in [0, 1), got {self.dropout}.")

    @property
    def stochastic(self) -> bool:
        """Whether a step draws random numbers of its own."""
        return self.dropout > 0.0

    def build(self, dataset: Dataset) -> nn.Module:
        """Load the model and add LoRA; tokens ``(n, t)``."""
        if dataset.x_train.is_floating_point():
            raise InputError(
                f"Expected tokens for a language model, {dataset.name} has none; choose text."
            )
        return add_lora(load_language_model(self.model, self.quantized), self)

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> LoopedModel:
        """Train models that :meth:`build` made one after another."""
        return LoopedModel(self, models, dtype, device)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss over the tokens of a batch that count, see :func:`counted_logits`."""
        logits, labels = counted_logits(model, x, y)
        return F.cross_entropy(logits, labels)

    def score(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Summed losses, hits and number of the tokens that count."""
        logits, labels = counted_logits(model, x, y)
        hits = (logits.argmax(1) == labels).sum()
        return F.cross_entropy(logits, labels, reduction="sum"), hits, len(labels)

    def predictions(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(v, m)`` and labels ``(m,)`` of the tokens that count."""
        logits, labels = counted_logits(model, x, y)
        return logits.T, labels


def add_lora(model: nn.Module, spec: LoRASpec) -> nn.Module:
    """Add LoRA to a frozen model; its matrices alone are trained.

    Raises:
        InputError: The model has none of the target modules, or lacks one.
    """
    peft = import_llm("peft")
    names = {name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)}
    missing = [target for target in spec.targets if target not in names]
    if missing or not spec.targets:
        raise InputError(
            f"Expected target modules among {', '.join(sorted(names))}; got "
            f"{', '.join(missing) or 'none'}: name modules of {spec.model}."
        )
    if spec.quantized:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)  # type: ignore[no-any-return]


def counted_logits(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(m, v)`` and labels ``(m,)`` of the m tokens of a batch that count.

    The padding behind the longest sequence is left out, and the product with the vocabulary, the
    largest tensor of all, is taken where a token counts.

    Args:
        model: A causal language model, with or without LoRA.
        x: Tokens, padded behind, ``(n, t)``.
        y: Label of each token, the next one, or ``IGNORED``, ``(n, t)``.

    Raises:
        InputError: No token counts.
    """
    counted = y != IGNORED
    if not counted.any():
        raise InputError(
            "Expected tokens that count in every batch, got sequences of padding alone; raise "
            "max_length or drop empty responses."
        )
    length = int(counted.any(0).nonzero().max()) + 1
    x, y, counted = x[:, :length], y[:, :length], counted[:, :length]
    # The padding lies behind every token that counts, where causal attention does not look.
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    scaled = any(getattr(base.config, name, None) for name in _SCALED_LOGITS)
    if scaled:
        return base(input_ids=x).logits[counted], y[counted]
    hidden = getattr(base, base.base_model_prefix)(input_ids=x).last_hidden_state
    return base.get_output_embeddings()(hidden[counted]), y[counted]


def _is_linear(module: nn.Module) -> bool:
    # Conv1D is the linear layer of GPT-2, Linear4bit one of bitsandbytes.
    return "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D"
