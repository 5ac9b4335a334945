"""The list of shipped policies."""

from __future__ import annotations

from rich.table import Table

from lrenv.policies.frozen import DEFAULT_POLICY, FrozenPolicy, load_policy, shipped_policies
from lrenv.training.progress import console


def list_policies(settings: object) -> None:
    """Print the shipped policies with what each is for, the default first."""
    table = Table()
    for title in ("policy", "serves", "trained on"):
        table.add_column(title, overflow="fold")
    for policy in sorted((load_policy(name) for name in shipped_policies()), key=_place):
        table.add_row(policy.name, _serves(policy), policy.card["training_families"])
    console.print(table)


def _place(policy: FrozenPolicy) -> tuple[bool, bool, str]:
    return policy.name != DEFAULT_POLICY, policy.preset == "classic", policy.name


def _serves(policy: FrozenPolicy) -> str:
    if policy.preset == "classic":
        return "models of two layers"
    default = "; taken unless another is named" if policy.name == DEFAULT_POLICY else ""
    return f"any model{default}"
