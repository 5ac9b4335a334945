"""Why a policy chose an LR: what the signals did to its decisions, and what it looked at.

Shape legend: t decisions, f features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lrenv.action import MAX_CHANGE
from lrenv.errors import InputError
from lrenv.observation import FEATURES, columns_of
from lrenv.policies.frozen import FrozenPolicy
from lrenv.policies.network import Block, CausalTransformer

SIGNALS: dict[str, tuple[str, ...]] = {
    "progress": ("left", "log_left", "interval_share"),
    "epochs": ("epoch",),
    "optimizer": ("optimizer_",),
    "training loss": ("loss", "window_loss"),
    "validation loss": ("val_",),
    "learning rate": ("lr",),
    "gradient norms": ("grad_norm", "window_grad_norm"),
    "LC sensitivities": ("lc_", "window_lc"),
    "update size": ("update_ratio", "weight_growth", "distance", "straightness", "dog"),
    "cosines": ("momentum_cos", "descent_cos", "gradient_cos"),
}
"""Groups of signals, each by the starts of its features' names."""


@torch.no_grad()
def explain(policy: FrozenPolicy, decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Attribute every decision of a log to groups of signals, by occlusion.

    A group's share is the change of log LR that the policy chose less the one it would have chosen
    had it never seen that group: its features are 0 at this and all earlier decisions, which for
    most of them means as at the start of the run. Shares need not add up to the change.

    Args:
        policy: The policy that made the decisions.
        decisions: The decision log, see :attr:`lrenv.LearnedLR.decisions`.

    Returns:
        For each decision its ``step``, ``lr``, the ``change`` of log LR, and the share of each
        group, ``moved_by``.

    Raises:
        InputError: The log is empty, of a classic policy, which keeps no features, or of a run that
            changed its length, which changes what the policy sees of the past.
    """
    tokens = _tokens(policy, decisions)
    chosen = _changes(policy, tokens)
    shares = {}
    for name, starts in SIGNALS.items():
        hidden = tokens.clone()
        hidden[..., columns_of(*starts)] = 0.0
        shares[name] = chosen - _changes(policy, hidden)
    return [
        {
            "step": entry["step"],
            "lr": entry["lr"],
            "change": float(chosen[k]),
            "moved_by": {name: float(share[k]) for name, share in shares.items()},
        }
        for k, entry in enumerate(decisions)
    ]


@torch.no_grad()
def attention(policy: FrozenPolicy, decisions: Sequence[Mapping[str, Any]]) -> Tensor:
    """How much each decision looked at each earlier one, mean over layers and heads, ``(t, t)``.

    Args:
        policy: The policy that made the decisions.
        decisions: The decision log.

    Raises:
        InputError: As :func:`explain`.
    """
    tokens, trunk = _tokens(policy, decisions), cast("CausalTransformer", policy.actor.trunk)
    x = trunk.embed(policy.actor.read(tokens))
    x = x + trunk.positions[: x.shape[1]]
    rows = []
    for block in cast("list[Block]", trunk.blocks):
        rows.append(block.attention(x).mean((0, 1)))
        x = block(x)
    return torch.stack(rows).mean(0)


def _tokens(policy: FrozenPolicy, decisions: Sequence[Mapping[str, Any]]) -> Tensor:
    if policy.preset != "scale-free":
        raise InputError(
            f"Expected the scale-free policy that made the decisions, got {policy.name!r}, a "
            f"{policy.preset} one."
        )
    if not decisions or "features" not in decisions[0]:
        got = "none" if not decisions else "some without"
        raise InputError(
            f"Expected decisions with their features, got {got}; only scale-free policies keep "
            "them, from their first decision on."
        )
    lengths = sorted({entry["total_steps"] for entry in decisions})
    if len(lengths) > 1:
        raise InputError(
            f"Expected the decisions of a run of one length, got {', '.join(map(str, lengths))} "
            "steps; there is no explanation of runs that change it."
        )
    return torch.tensor([[[d["features"].get(f, 0.0) for f in FEATURES] for d in decisions]])


def _changes(policy: FrozenPolicy, tokens: Tensor) -> Tensor:
    action: Tensor = policy.actor(tokens)[0]
    return MAX_CHANGE * action.clamp(-1.0, 1.0)
