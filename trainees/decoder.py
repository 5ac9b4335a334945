"""Decoder-only Transformers on tokens, single and stacked.

Shape legend: r runs, n batch size, t tokens, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.specs import RunSpec
from lrenv.trainees.stacked import StackedModel, classify, linear


@dataclass(frozen=True)
class DecoderSpec(RunSpec):
    """A run of a decoder that predicts each next token.

    Attributes:
        width: Width of the residual stream.
        layers: Number of layers.
        heads: Attention heads; they divide the width.
    """

    kind: ClassVar[str] = "decoder"
    width: int = 32
    layers: int = 2
    heads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.width % self.heads:
            raise InputError(
                f"Expected heads that divide the width, got {self.heads} and {self.width}."
            )

    def build(self, dataset: Dataset) -> Decoder:
        """Make the model for a data set of tokens: ``(n, t)`` to ``(n, v, t)``."""
        if dataset.x_train.is_floating_point():
            raise InputError(
                f"Expected tokens for a decoder, {dataset.name} has none; choose text."
            )
        return Decoder(self, dataset.n_classes, dataset.n_features)

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedDecoder:
        """Stack models that :meth:`build` made."""
        return StackedDecoder(self, models, dtype, device)


class Decoder(nn.Module):
    """A pre-norm Transformer of torch's encoder layers under a causal mask.

    Args:
        spec: The shape.
        n_tokens: Size of the vocabulary.
        context: Tokens of a sequence, at most.
    """

    def __init__(self, spec: DecoderSpec, n_tokens: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, spec.width)
        self.positions = nn.Embedding(context, spec.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                spec.width,
                spec.heads,
                4 * spec.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, n_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token everywhere: ``(n, t)`` to ``(n, v, t)``."""
        length = tokens.shape[1]
        h = self.tokens(tokens) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(
            length, device=h.device, dtype=h.dtype
        )
        for layer in self.layers:
            h = layer(h, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(h))
        return logits.transpose(1, 2)


class StackedDecoder(StackedModel):
    """Decoders in stacked tensors.

    Args:
        spec: The shape.
        models: The models.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        models: Sequence[nn.Module],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(models, dtype, device)
        self._spec = spec

    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Predict, see :class:`StackedModel`."""
        n_runs = len(self.params[0])
        table = params["tokens.weight"]
        if x.ndim == 2:
            x = x.expand(n_runs, -1, -1)
        _, n, t = x.shape
        index = x.flatten(1)[..., None].expand(-1, -1, self._spec.width)
        h = table.gather(1, index).unflatten(1, (n, t))
        h = (h + params["positions.weight"][:, None, :t]).flatten(1, 2)
        for k in range(self._spec.layers):
            own = _Scope(params, f"layers.{k}.")
            h = h + self._attend(own.norm("norm1", h), own, n)
            hidden = F.gelu(own.linear("linear1", own.norm("norm2", h)))
            h = h + own.linear("linear2", hidden)
        h = _Scope(params, "").norm("norm", h)
        return classify(h, params["head.weight"], params["head.bias"])

    def _attend(self, h: Tensor, own: _Scope, n: int) -> Tensor:
        r, m, d = h.shape
        heads = self._spec.heads
        qkv = linear(h, own["self_attn.in_proj_weight"], own["self_attn.in_proj_bias"])
        q, k, v = qkv.view(r * n, m // n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return own.linear("self_attn.out_proj", attended.transpose(1, 2).reshape(r, m, d))


class _Scope:
    """The stacked parameters below a prefix."""

    def __init__(self, params: Mapping[str, Tensor], prefix: str) -> None:
        self._params, self._prefix = params, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._params[self._prefix + name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        normal = F.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self[f"{name}.bias"][:, None], normal, self[f"{name}.weight"][:, None])
