"""The plots of the report, as plain dicts for plotly.js: data in, no drawing here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lrenv.training.records import PROFILE_END
from lrenv.training.report_page import number

Row = Mapping[str, Any]
Plot = dict[str, Any]

REFERENCES = ("tuned expert", "lr-matched")
"""How the names of methods begin that nobody has before the run: they need a search or a run."""

LEARNED_COLORS = ("#D55E00", "#C0457F")
OTHER_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#A67C00", "#8E6BBF")
REFERENCE_COLORS = ("#7A7F87",)
DASHES = ("solid", "7px,3px", "2px,3px", "9px,3px,2px,3px", "12px,4px")

ROW_HEIGHT = 46
"""Height of a method's row in the ratio plot, in pixels."""


def is_reference(method: str) -> bool:
    """Whether a method is a yardstick rather than a competitor."""
    return method.lower().startswith(REFERENCES)


def is_learned(method: str) -> bool:
    """Whether a method is a learned policy."""
    return method.lower().startswith("learned")


@dataclass(frozen=True)
class Style:
    """How a method is drawn in every plot."""

    index: int
    color: str
    width: float
    dash: str

    def swatch(self) -> str:
        """Draw a short line for a table or legend."""
        dash = "none" if self.dash == "solid" else self.dash
        return (
            '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><line x1="0" y1="4" x2="28" '
            f'y2="4" stroke="{self.color}" stroke-width="{self.width}" stroke-dasharray="{dash}"/>'
            "</svg>"
        )


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method its line: learned policies thick, references grey and dashed."""
    styles: dict[str, Style] = {}
    used: dict[tuple[str, ...], int] = {}
    for index, method in enumerate(methods):
        colors: tuple[str, ...] = OTHER_COLORS
        width, dash = 2.0, 0
        if is_reference(method):
            colors, dash = REFERENCE_COLORS, 1
        elif is_learned(method):
            colors, width = LEARNED_COLORS, 4.0
        turn, place = divmod(used.get(colors, 0), len(colors))
        used[colors] = used.get(colors, 0) + 1
        styles[method] = Style(index, colors[place], width, DASHES[(dash + turn) % len(DASHES)])
    return styles


def log_axis(values: Iterable[float], title: str) -> Plot:
    """Make a logarithmic axis that shows the values, with ticks at round numbers."""
    known = list(values) or [1.0]
    low, high = min(known), max(known)
    margin = max(0.04 * math.log10(high / low), 0.01)
    bounds = [math.log10(low) - margin, math.log10(high) + margin]
    ticks = _ticks(10 ** bounds[0], 10 ** bounds[1])
    texts = [f"{t:g}" if 1e-3 <= t < 1e5 else f"{t:.0e}".replace("e-0", "e-") for t in ticks]
    return {
        "type": "log",
        "range": bounds,
        "tickvals": ticks,
        "ticktext": texts,
        "title": {"text": title},
    }


def _ticks(low: float, high: float) -> list[float]:
    """Choose the coarsest round numbers of which at least four lie between the bounds."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [float(f"{d}e{k}") for k in decades for d in digits]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) >= 4:
            return ticks
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= max(m for m in (1, 2, 5) if m * step <= (high - low) / 4)
    return [float(f"{k * step:.6g}") for k in range(math.ceil(low / step), int(high / step) + 1)]


def ratio_plot(results: Row, styles: Mapping[str, Style]) -> Plot:
    """Draw each method's runs as dots over the interval of their geometric mean."""
    summary = {str(row["method"]): row for row in results.get("summary") or []}
    bounds = [-0.6, len(styles) - 0.3]
    traces = [_line_at_one(bounds)]
    drawn = [1.0]
    for method, style in styles.items():
        row = len(styles) - 1 - style.index
        low, mean, high = (
            positive(summary.get(method, {}).get(key))
            for key in ("low", "geometric_mean_ratio", "high")
        )
        runs = [r for r in results.get("runs") or [] if r["method"] == method]
        runs = [r for r in runs if positive(r.get("ratio")) is not None]
        if low is not None and high is not None:
            traces.append(_bar(method, row, style, low, high))
            drawn += [low, high]
        if runs:
            traces.append(_dots(method, row, style, runs))
            drawn += [float(r["ratio"]) for r in runs]
        if mean is not None:
            traces.append(_diamond(method, row, style, mean))
            drawn.append(mean)
    layout = {
        "xaxis": log_axis(drawn, "ratio to the tuned expert, log scale"),
        "yaxis": {
            "range": bounds,
            "tickvals": [len(styles) - 1 - s.index for s in styles.values()],
            "ticktext": [escape(m, quote=False) for m in styles],
            "fixedrange": True,
        },
    }
    return {"traces": traces, "layout": layout}


def profile_plot(results: Row, styles: Mapping[str, Style]) -> Plot:
    """Draw the performance profile: each method's share of runs within a ratio (AlgoPerf)."""
    traces = []
    for method in sorted(styles, key=is_learned):
        style = styles[method]
        runs = [r for r in results.get("runs") or [] if r["method"] == method]
        ratios = sorted(
            max(1.0, ratio) for r in runs if (ratio := positive(r.get("ratio"))) is not None
        )
        within = [ratio for ratio in ratios if ratio <= PROFILE_END]
        shares = [(k + 1) / len(runs) for k in range(len(within))]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [1.0, *within, PROFILE_END],
                "y": [0.0, *shares, shares[-1] if shares else 0.0],
                "line": {
                    "shape": "hv",
                    "color": style.color,
                    "width": style.width,
                    "dash": style.dash,
                },
                "hovertemplate": f"{escape(method)}<br>ratio %{{x:.2f}}: %{{y:.0%}}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "ratio to the tuned expert"}, "range": [1.0, PROFILE_END]},
        "yaxis": {"title": {"text": "share of runs"}, "range": [0, 1.02], "tickformat": ".0%"},
    }
    return {"traces": traces, "layout": layout}


def positive(value: Any) -> float | None:
    """Return a positive finite number, which a logarithmic axis can show, or ``None``."""
    known = number(value)
    return known if known is not None and known > 0 else None


def _line_at_one(bounds: Sequence[float]) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [1, 1],
        "y": list(bounds),
        "line": {"color": REFERENCE_COLORS[0], "width": 2},
        "hoverinfo": "skip",
    }


def _bar(method: str, row: int, style: Style, low: float, high: float) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [low, high],
        "y": [row, row],
        "line": {"color": style.color, "width": 12},
        "opacity": 0.35,
        "hovertemplate": f"{escape(method)}<br>95 % {low:.3f}–{high:.3f}<extra></extra>",
    }


def _dots(method: str, row: int, style: Style, runs: Sequence[Row]) -> Plot:
    # The golden ratio spreads any number of dots evenly over the row, the same way each time.
    spread = [row + 0.3 * ((i * 0.618 + 0.5) % 1.0 - 0.5) for i in range(len(runs))]
    notes = [
        escape(f"{r.get('task')}, seed {r.get('seed')}, {r.get('detail') or method}") for r in runs
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [float(r["ratio"]) for r in runs],
        "y": spread,
        "text": notes,
        "marker": {"color": style.color, "size": 9 if is_learned(method) else 7, "opacity": 0.8},
        "hovertemplate": f"{escape(method)}<br>%{{text}}<br>ratio %{{x:.3f}}<extra></extra>",
    }


def _diamond(method: str, row: int, style: Style, mean: float) -> Plot:
    size = 15 if is_learned(method) else 12
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [mean],
        "y": [row],
        "marker": {
            "symbol": "diamond",
            "color": style.color,
            "size": size,
            "line": {"color": "#ffffff", "width": 1.5},
        },
        "hovertemplate": f"{escape(method)}<br>geometric mean {mean:.3f}<extra></extra>",
    }
