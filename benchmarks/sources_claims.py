"""Tables of the sources: rows over seeds, and whether what a source claims holds in them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from sources_runs import Row

from lrenv.training.progress import console

HELD, MIXED, FAILED = "held", "mixed", "did not hold"


@dataclass(frozen=True)
class Check:
    """One method is ahead of another in a figure.

    Attributes:
        ahead: Label of the method that is to be ahead.
        behind: Label of the other.
        figure: The figure, of which less is better unless it is an accuracy or ROUGE.
    """

    ahead: str
    behind: str
    figure: str = "val_loss"

    def judge(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Compare seed by seed: held on all seeds, on none, or mixed; a tie is not ahead."""
        losses: dict[str, dict[int, float]] = defaultdict(dict)
        figures: dict[str, list[float | None]] = defaultdict(list)
        for row in rows:
            losses[row["method"]][row["seed"]] = self._loss(row)
            figures[row["method"]].append(row[self.figure])
        one, other = losses[self.ahead], losses[self.behind]
        shared = sorted(one.keys() & other.keys())
        wins = sum(one[seed] < other[seed] for seed in shared)
        verdict = HELD if wins == len(shared) > 0 else MIXED if wins else FAILED
        return {
            "ahead": self.ahead,
            "behind": self.behind,
            "figure": self.figure,
            "values": [average(figures[name]) for name in (self.ahead, self.behind)],
            "wins": wins,
            "seeds": len(shared),
            "verdict": verdict,
        }

    def _loss(self, row: Row) -> float:
        value = row[self.figure]
        if value is None:
            return math.inf
        higher = "accuracy" in self.figure or "rouge" in self.figure
        return -float(value) if higher else float(value)


def judge(text: str, checks: Sequence[Check], rows: Sequence[Row]) -> dict[str, Any]:
    """Say whether a claim held, which it does if all of its checks do.

    Args:
        text: The claim.
        checks: What it says of the rows.
        rows: One a method and seed.
    """
    judged = [check.judge(rows) for check in checks]
    verdicts = {entry["verdict"] for entry in judged}
    verdict = verdicts.pop() if len(verdicts) == 1 else "held in part"
    return {"claim": text, "verdict": verdict, "checks": judged}


def claim_line(claim: Mapping[str, Any]) -> str:
    """The claim, whether it held, and the figures that say so, in one line."""
    parts = []
    for entry in claim["checks"]:
        one, other = map(_told, entry["values"])
        sign = {HELD: "✓", MIXED: "~", FAILED: "✗"}[entry["verdict"]]
        won = f", {entry['wins']} of {entry['seeds']} seeds" if entry["seeds"] > 1 else ""
        text = f"{entry['ahead']} {one} against {entry['behind']} {other}"
        parts.append(f"{sign} {text} ({entry['figure']}{won})")
    return f"{claim['claim']}: {claim['verdict']}. {'; '.join(parts)}."


@dataclass(frozen=True)
class SourceTable:
    """A table in a source's own form.

    Attributes:
        title: Source and trainee.
        reported: The source's own figures.
        differs: What differs from the source.
        columns: Headings of figures, by their names in rows.
        rows: One a method and seed.
        claim: What the source says, see :func:`judge`.
        control: The same against fair baselines.
        further: Figures that are no method's, by name.
    """

    title: str
    reported: str
    differs: str
    columns: dict[str, str]
    rows: list[Row]
    claim: dict[str, Any]
    control: dict[str, Any]
    further: dict[str, dict[str, float]] | None = None

    def show(self) -> None:
        """Print the table, in Markdown, and whether the claim held."""
        headings = ["method", "LR", *self.columns.values(), "seeds"]
        table = [headings, ["---"] * len(headings)]
        for method, own in by_method(self.rows).items():
            cells = [_cell([row.get(name) for row in own]) for name in self.columns]
            table.append([method, _told(own[0].get("lr")), *cells, str(len(own))])
        lines = [f"\n{self.title}\n", *(f"| {' | '.join(line)} |" for line in table), ""]
        lines += [
            f"{name}: {', '.join(f'{figure} {_told(value)}' for figure, value in own.items())}."
            for name, own in (self.further or {}).items()
        ]
        lines += [f"The source reports {self.reported}.", f"Ours has {self.differs}."]
        for line in (*lines, claim_line(self.claim), claim_line(self.control)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values, with the means of all figures."""
        means = {
            method: {
                name: average([row.get(name) for row in own])
                for name in own[0]
                if name not in ("method", "seed")
            }
            for method, own in by_method(self.rows).items()
        }
        return {**vars(self), "means": means, "line": claim_line(self.claim)}


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group rows by method, in the order of their first ones."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["method"]].append(row)
    return found


def average(values: Sequence[float | None]) -> float | None:
    """The mean, None where there is no value or one is not finite."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return _told(mean(known)) + (f" ± {stdev(known):.1g}" if len(known) > 1 else "")


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
