"""The page of a sweep: parallel coordinates, the best runs' LRs and losses, every trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from lrenv.files import write_atomic
from lrenv.training.bench.database import TrialRecord
from lrenv.training.bench.sweep import Sweep
from lrenv.training.bench.trials_page import (
    curves,
    number_cell,
    peak,
    policies_of,
    positive,
    short_policy,
    table,
)
from lrenv.training.report_page import simple_page

_SHOWN = 8
_NO_BAR = {"displayModeBar": False}

_BODY = Template("""<p>$text</p>
<script>$library</script>
<figure>$coordinates<figcaption>Every trial of LRBench's policies that came to its end: a line from
its policy over its peak to its outcome. Drag along an axis to filter.</figcaption></figure>
<figure>$rates<figcaption>Learning rates of the best trials; click a name to hide
one.</figcaption></figure>
<figure>$losses<figcaption>Their validation losses.</figcaption></figure>
<h2>Every trial</h2>
$table""")


def write_sweep_page(path: Path, sweep: Sweep, records: Sequence[TrialRecord]) -> Path:
    """Write the page of a sweep and return its path.

    Args:
        path: The file to write.
        sweep: The sweep.
        records: Its trials.
    """
    done = sorted((r for r in records if r.status == "done"), key=sweep.value)
    kind = {"val_loss": "validation loss", "steps": "steps to target"}.get(
        sweep.measure, "seconds to target"
    )
    text = f"{len(records)} trials on {sweep.task}, {sweep.total_steps} steps a run; least {kind}"
    body = _BODY.substitute(
        library=get_plotlyjs(),
        text=escape(f"{text}: {_long(done[0])}." if done else f"{text}. None came to its end."),
        coordinates=_coordinates(sweep, done, kind),
        rates=curves(done[:_SHOWN], "lr", "learning rate", _short),
        losses=curves(done[:_SHOWN], "val_loss", "validation loss", _short),
        table=_table(records),
    )
    page = simple_page(f"Sweep: {sweep.task}", body)
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _long(record: TrialRecord) -> str:
    return f"learned: {record.policy}" if record.policy_kind == "learned" else record.policy


def _short(record: TrialRecord) -> str:
    """A name for legends; the table has the whole one."""
    return f"{record.parameters['index']}: {short_policy(record)}"


def _coordinates(sweep: Sweep, done: Sequence[TrialRecord], kind: str) -> str:
    rows = [record for record in done if record.policy_kind == "lrbench"]
    if not rows:
        return "<p>No trial of LRBench's policies came to its end.</p>"
    policies = [policies_of(record)[0] for record in rows]
    kinds = sorted({policy.kind for policy in policies})
    values = [sweep.value(record) for record in rows]
    log = positive(values)
    values = [math.log10(value) for value in values] if log else values
    peaks = [math.log10(peak(policy)) for policy in policies]
    dimensions: list[dict[str, Any]] = [
        {
            "label": "policy",
            "values": [kinds.index(policy.kind) for policy in policies],
            "tickvals": list(range(len(kinds))),
            "ticktext": kinds,
        },
        {"label": "log₁₀ peak LR", "values": peaks},
        {"label": "steps taken", "values": [record.steps for record in rows]},
        {"label": f"log₁₀ {kind}" if log else kind, "values": values},
    ]
    figure = go.Figure(
        go.Parcoords(
            line={"color": values, "colorscale": "Viridis", "showscale": False},
            dimensions=dimensions,
            labelfont={"color": "#7A7F87"},
            tickfont={"color": "#7A7F87"},
            rangefont={"color": "#7A7F87"},
        )
    )
    figure.update_layout(height=380, paper_bgcolor="rgba(0,0,0,0)", margin={"l": 60, "r": 60})
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config=_NO_BAR)
    return html


def _table(records: Sequence[TrialRecord]) -> str:
    heads = ("trial", "policy", "status", "validation loss", "steps", "seconds", "message")
    rows = (
        (
            str(record.parameters["index"]),
            _long(record),
            record.status,
            number_cell(record.metrics.get("val_loss")),
            str(record.steps),
            number_cell(record.seconds, ".1f"),
            record.error,
        )
        for record in records
    )
    return table(heads, rows)
