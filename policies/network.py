"""The policy networks: Transformers of 4 layers and 2 heads.

Shape legend: b batch, t decisions, f features, d width, w window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrenv.decisions import MAX_DECISIONS
from lrenv.errors import InputError


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Sinusoidal position encodings, ``(length, width)`` (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    out = torch.zeros(length, width)
    out[:, 0::2] = torch.sin(position * rate)
    out[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return out


class Block(nn.Module):
    """A pre-norm Transformer layer with causal attention and a cache for one-token steps."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """Map ``(b, t, d)`` to the same shape; a cache holds the past, and t is 1."""
        q, k, v = self._project(x)
        if cache is not None:
            k = torch.cat([cache[0], k], 2) if cache else k
            v = torch.cat([cache[1], v], 2) if cache else v
            cache[:] = [k, v]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights on ``(b, t, d)``, ``(b, heads, t, t)``."""
        q, k, _ = self._project(x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        ahead = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return F.softmax(scores.masked_fill(ahead, -torch.inf), -1)

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, ``(3, b, heads, t, d / heads)``."""
        qkv: Tensor = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4)


class CausalTransformer(nn.Module):
    """Reads the decisions of a run in order; each one sees itself and those before.

    One pass over ``(b, t, f)`` therefore gives the features of all t decisions of b runs, and at
    run time a cache makes a decision cost one token.
    """

    def __init__(self, n_features: int, width: int = 64, layers: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(n_features, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        positions = sinusoidal_positions(MAX_DECISIONS, width)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Features of every decision: ``(b, t, f)`` to ``(b, t, d)``."""
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def step(self, token: Tensor, cache: list[list[Tensor]]) -> Tensor:
        """Features of the next decision: ``(b, f)`` to ``(b, d)``; an empty cache starts a run."""
        if not cache:
            cache.extend([] for _ in self.blocks)
        past = cache[0][0].shape[2] if cache[0] else 0
        x = (self.embed(token) + self.positions[past])[:, None]
        for block, memory in zip(self.blocks, cache, strict=True):
            x = block(x, memory)
        return self.norm(x)[:, 0]  # type: ignore[no-any-return]

    def last(self, padded: Tensor) -> Tensor:
        """Features of the last decision of observations padded behind, ``(b, t, f)``."""
        length = padded[:, :, 0].sum(1).long().clamp_min(1)
        features: Tensor = self(padded[:, : int(length.max())])
        return features[torch.arange(len(padded), device=padded.device), length - 1]


class ClassicTransformer(nn.Module):
    """The encoder of the source over the raw window: ``(b, w, d)`` to ``(b, d)``.

    Sinusoidal positions, 4 layers, 2 heads, feed-forward 2d, GELU, mean over time. The token width
    d is the number of layers of the trainee + 4, which ties the policy to an architecture. Inputs
    are normalised by the means and deviations of the demonstrations.
    """

    def __init__(self, n_features: int, layers: int = 4, heads: int = 2) -> None:
        super().__init__()
        if n_features % heads:
            raise InputError(
                f"Expected an even token width (layers of the trainee + 4), got {n_features}; "
                "use a trainee with an even number of layers or the scale-free preset."
            )
        self.width = n_features
        layer = nn.TransformerEncoderLayer(
            n_features, heads, 2 * n_features, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.mean: Tensor
        self.std: Tensor

    def last(self, window: Tensor) -> Tensor:
        """Features of the state that ends a window, ``(b, w, d)`` to ``(b, d)``."""
        x = (window - self.mean) / self.std
        x = x + sinusoidal_positions(x.shape[1], self.width).to(x)
        return self.encoder(x).mean(1)  # type: ignore[no-any-return]


def build_trunk(preset: str, n_features: int) -> CausalTransformer | ClassicTransformer:
    """Build the Transformer of a preset."""
    kind = ClassicTransformer if preset == "classic" else CausalTransformer
    return kind(n_features)


class Head(nn.Module):
    """A Transformer and a linear layer with one output: an actor or a critic.

    Args:
        preset: Preset of the observations.
        n_features: Features of a token that it is given.
        columns: Those that it reads; all by default.
    """

    def __init__(self, preset: str, n_features: int, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.n_features = n_features
        read = torch.arange(n_features) if columns is None else torch.tensor(columns)
        self.register_buffer("columns", read, persistent=False)
        self.columns: Tensor
        self.trunk = build_trunk(preset, len(read))
        self.head = nn.Linear(self.trunk.width, 1)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """One value for each decision: ``(b, t, f)`` to ``(b, t)``."""
        return self.head(self.trunk(self.read(tokens)))[..., 0]  # type: ignore[no-any-return]

    def step(self, token: Tensor, cache: list[list[Tensor]]) -> Tensor:
        """One value for the next decision: ``(b, f)`` to ``(b,)``."""
        assert isinstance(self.trunk, CausalTransformer)
        return self.head(self.trunk.step(self.read(token), cache))[..., 0]  # type: ignore[no-any-return]

    def last(self, observation: Tensor) -> Tensor:
        """One value for the last decision of padded observations: to ``(b,)``."""
        return self.head(self.trunk.last(self.read(observation)))[..., 0]  # type: ignore[no-any-return]

    def start_from(self, other: Head) -> None:
        """Take the weights of an actor that may read fewer features; the others start unheard.

        Raises:
            InputError: The other actor reads a feature that this one does not.
        """
        if not bool(torch.isin(other.columns, self.columns).all()):
            raise InputError(
                "Expected a start that reads no feature but those of the new policy, got more; "
                "hide fewer."
            )
        state = other.state_dict()
        known = torch.isin(self.columns, other.columns)
        embed = state["trunk.embed.weight"]
        state["trunk.embed.weight"] = embed.new_zeros(len(embed), len(known))
        places = torch.searchsorted(other.columns, self.columns[known])
        state["trunk.embed.weight"][:, known] = embed[:, places]
        self.load_state_dict(state)

    def read(self, tokens: Tensor) -> Tensor:
        """Pick the features that it reads out of all of them, ``(..., f)``."""
        if len(self.columns) == tokens.shape[-1]:
            return tokens
        return tokens.index_select(-1, self.columns)


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """Return contiguous copies of a module's state, ready for safetensors."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
