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
from lrenv.policies.lrbench import Composition, LRPolicy, parse_policy
from lrenv.training.bench.database import TrialRecord
from lrenv.training.bench.sweep import Sweep
from lrenv.training.report_page import simple_page
from lrenv.training.run_report import figure_html

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
<div style="overflow-x: auto" tabindex="0" role="region" aria-label="Every trial">$table</div>""")


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
        text=escape(f"{text}: {_name(done[0])}." if done else f"{text}. None came to its end."),
        coordinates=_coordinates(sweep, done, kind),
        rates=_lines(done[:_SHOWN], "lr", "learning rate, log scale"),
        losses=_lines(done[:_SHOWN], "val_loss", "validation loss, log scale"),
        table=_table(sweep, records),
    )
    page = simple_page(f"Sweep: {sweep.task}", body)
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _name(record: TrialRecord) -> str:
    return f"learned: {record.policy}" if record.policy_kind == "learned" else record.policy


def _short(record: TrialRecord) -> str:
    """A name for legends; the table has the whole one."""
    if record.policy_kind == "learned":
        return _name(record)
    policy = parse_policy(record.policy)
    parts = policy.policies if isinstance(policy, Composition) else (policy,)
    return f"{record.parameters['index']}: {' – '.join(f'{p.kind} {_peak(p):.2g}' for p in parts)}"


def _peak(policy: LRPolicy) -> float:
    return float(max(policy.values["k0"], policy.values.get("k1", 0.0)))


def _first(record: TrialRecord) -> LRPolicy:
    policy = parse_policy(record.policy)
    return policy.policies[0] if isinstance(policy, Composition) else policy


def _coordinates(sweep: Sweep, done: Sequence[TrialRecord], kind: str) -> str:
    rows = [record for record in done if record.policy_kind == "lrbench"]
    if not rows:
        return "<p>No trial of LRBench's policies came to its end.</p>"
    policies = [_first(record) for record in rows]
    kinds = sorted({policy.kind for policy in policies})
    values = [math.log10(sweep.value(record)) for record in rows]
    peaks = [math.log10(_peak(policy)) for policy in policies]
    dimensions: list[dict[str, Any]] = [
        {
            "label": "policy",
            "values": [kinds.index(policy.kind) for policy in policies],
            "tickvals": list(range(len(kinds))),
            "ticktext": kinds,
        },
        {"label": "log₁₀ peak LR", "values": peaks},
        {"label": "steps taken", "values": [record.steps for record in rows]},
        {"label": f"log₁₀ {kind}", "values": values},
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


def _lines(records: Sequence[TrialRecord], name: str, title: str) -> str:
    lines = [
        go.Scatter(x=record.curve["step"], y=record.curve[name], name=_short(record))
        for record in records
        if record.curve.get(name)
    ]
    if not lines:
        return "<p>No trial reported any.</p>"
    return figure_html(lines, title, log=True)


def _table(sweep: Sweep, records: Sequence[TrialRecord]) -> str:
    heads = ("trial", "policy", "status", "validation loss", "steps", "seconds", "message")
    lines = []
    for record in records:
        loss = record.metrics.get("val_loss")
        cells = (
            str(record.parameters["index"]),
            _name(record),
            record.status,
            "none" if loss is None else f"{loss:.4g}",
            str(record.steps),
            "none" if record.seconds is None else f"{record.seconds:.1f}",
            record.error,
        )
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
