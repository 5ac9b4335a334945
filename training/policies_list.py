"""The list of shipped policies."""

from __future__ import annotations

from rich.table import Table

from lrenv.policies.frozen import load_policy, shipped_policies
from lrenv.training.progress import console


def list_policies(settings: object) -> None:
    """Print the shipped policies with how each was made."""
    table = Table("policy", "preset", "made by", "trained on")
    for name in shipped_policies():
        card = load_policy(name).card
        table.add_row(name, card["preset"], card["made_by"], card["training_families"])
    console.print(table)
