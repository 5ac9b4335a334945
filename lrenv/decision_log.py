"""The entries of the decision log."""

from __future__ import annotations

from typing import Any

from lrenv.controller import Controller, Decision
from lrenv.observation import FEATURES, ScaleFreeObserver


def log_entry(controller: Controller, decision: Decision, rolled_back: bool) -> dict[str, Any]:
    """Describe a decision of one run in plain values.

    Args:
        controller: The controller that has just acted.
        decision: What it did.
        rolled_back: Whether the weights were taken back.

    Returns:
        ``step``, ``lr``, ``action``, ``total_steps``, ``guard`` (why it cut the LR, None if it did
        not), ``rolled_back``, and ``features`` of the scale-free observation that it rests on.
    """
    bad = "the loss exploded" if bool(decision.exploded) else "the loss was not finite"
    entry: dict[str, Any] = {
        "step": decision.step,
        "lr": float(decision.lr),
        "action": float(decision.action),
        "total_steps": controller.plan.total_steps,
        "guard": bad if bool(decision.guarded) else None,
        "rolled_back": rolled_back,
    }
    if isinstance(controller.observer, ScaleFreeObserver):
        row = controller.observer.tokens[-1][0].tolist()
        entry["features"] = dict(zip(FEATURES, row, strict=True))
    return entry
