"""The entries of the decision log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrenv.controller import Controller, Decision
from lrenv.files import write_atomic
from lrenv.observation import FEATURES, ScaleFreeObserver


def log_entry(controller: Controller, decision: Decision, rolled_back: bool) -> dict[str, Any]:
    """Describe a decision of one run in plain values.

    Args:
        controller: The controller that has just acted.
        decision: What it did.
        rolled_back: Whether the weights were taken back.

    Returns:
        ``step``, ``lr``, ``action``, ``total_steps``, ``guard`` (why it cut the LR, None if it did
        not), ``bounded`` (whether a bound kept the LR from what the action asks for),
        ``rolled_back``, and ``features`` of the scale-free observation that it rests on.
    """
    bad = "the loss exploded" if bool(decision.exploded) else "the loss was not finite"
    entry: dict[str, Any] = {
        "step": decision.step,
        "lr": float(decision.lr),
        "action": float(decision.action),
        "total_steps": controller.plan.total_steps,
        "guard": bad if bool(decision.guarded) else None,
        "bounded": bool(decision.bounded),
        "rolled_back": rolled_back,
    }
    if isinstance(controller.observer, ScaleFreeObserver):
        row = controller.observer.tokens[-1][0].tolist()
        entry["features"] = dict(zip(FEATURES, row, strict=True))
    return entry


def save_log(path: Path, entries: Iterable[Mapping[str, Any]], policy: Mapping[str, Any]) -> None:
    """Write entries as lines of JSON, atomically.

    Args:
        path: Where to.
        entries: The entries.
        policy: The card of the policy that made them; each line has its name and hash.

    Raises:
        InputError: The file cannot be written.
    """
    head = {"policy": policy["name"], "policy_sha256": policy["sha256"]}
    text = "".join(json.dumps({**head, **entry}) + "\n" for entry in entries)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
