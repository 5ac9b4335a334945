"""The report of one run: losses, learning rate, metrics and settings on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lrenv.files import write_atomic
from lrenv.training.report_page import simple_page

_BODY = Template("""
<figure>$losses<figcaption>Training loss at each optimizer step, and validation losses.</figcaption>
</figure>
<figure>$rates<figcaption>Learning rate$marks.</figcaption>
</figure>
<h2>Results</h2>
$metrics
<h2>Settings</h2>
$settings""")

_SOFT = "rgba(122,127,135,0.25)"


def write_run_report(
    path: Path,
    title: str,
    curves: tuple[
        Mapping[str, Mapping[int, float]],
        Mapping[str, Sequence[float]],
        Sequence[Mapping[str, Any]],
    ],
    tables: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Path:
    """Write the page and return its path.

    Args:
        path: The file to write.
        title: Its title.
        curves: Losses by optimizer step, for each curve; LRs of all steps, for each group of
            parameters; and the decision log, empty where no policy decided.
        tables: Metrics, and settings.
    """
    losses, lrs, decisions = curves
    body = _BODY.substitute(
        losses=_losses(losses),
        rates=_rates(lrs, decisions),
        marks="; a dot is a decision, a cross one of the guard" if decisions else "",
        metrics=_table(tables[0]),
        settings=_table(tables[1]),
    )
    text = simple_page(title, body)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _losses(losses: Mapping[str, Mapping[int, float]]) -> str:
    from plotly import graph_objects as go

    lines = [
        go.Scatter(x=list(points), y=list(points.values()), name=name)
        for name, points in losses.items()
    ]
    return figure_html(lines, "loss", with_library=True)


def _rates(lrs: Mapping[str, Sequence[float]], decisions: Sequence[Mapping[str, Any]]) -> str:
    from plotly import graph_objects as go

    # What is set behind a step holds from there on.
    lines = [
        go.Scatter(
            x=list(range(1, len(values) + 1)), y=list(values), line={"shape": "hv"}, name=name
        )
        for name, values in lrs.items()
    ]
    if decisions:
        marks = ["x" if entry["guard"] else "circle" for entry in decisions]
        dots = go.Scatter(
            x=[entry["step"] for entry in decisions],
            y=[entry["lr"] for entry in decisions],
            mode="markers",
            marker={"symbol": marks, "size": 5},
            name="decisions",
        )
        lines.append(dots)
    return figure_html(lines, "learning rate, log scale", log=True)


def figure_html(
    lines: Sequence[Any],
    title: str,
    log: bool = False,
    with_library: bool = False,
    x_title: str = "optimizer step",
    log_x: bool = False,
) -> str:
    """Draw a figure as HTML; one figure of a page brings the library."""
    from plotly import graph_objects as go

    figure = go.Figure(list(lines))
    figure.update_layout(
        height=380,
        margin={"l": 60, "r": 10, "t": 10, "b": 45},
        xaxis={
            "title": x_title,
            "type": "log" if log_x else "-",  # by the values
            "gridcolor": _SOFT,
            "zeroline": False,
        },
        yaxis={"title": title, "type": "log" if log else "-", "gridcolor": _SOFT},
        legend={"orientation": "h", "yanchor": "top", "y": -0.2},
        # Seen on a light page and on a dark one.
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7A7F87"},
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=with_library, config={"displayModeBar": False}
    )
    return html


def _table(rows: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_text(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
