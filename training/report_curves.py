"""The plots of single runs in the report: LR and loss over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lrenv.training.report_plots import Plot, Row, Style, is_learned, log_axis, positive

Series = Mapping[str, Sequence[float | None]]

SMOOTHED_SHARE = 0.02
"""Time constant of the moving average of the loss, as a share of the run."""
DRAWN_POINTS = 600
"""Points of a curve kept in the page, at most; the last one always."""
LR_DECADES = 3
"""Decades under the highest LR that are drawn, unless a method starts lower."""
LOSS_CEILING = 10.0
"""Highest loss drawn, in multiples of the highest first one."""


def curve_plots(results: Row, styles: Mapping[str, Style]) -> dict[str, Plot]:
    """Draw LR and loss of one run a method, for each task: that of the lowest seed."""
    runs = results.get("runs") or []
    tasks = list(dict.fromkeys(str(run["task"]) for run in runs))
    return {
        task: _task_plots([r for r in runs if str(r["task"]) == task], styles) for task in tasks
    }


def _task_plots(runs: Sequence[Row], styles: Mapping[str, Style]) -> Plot:
    with_curve = [run for run in runs if run.get("curve")]
    seed = min((run["seed"] for run in with_curve), default=None)
    chosen: dict[str, Row] = {}
    for run in with_curve:
        if run["seed"] == seed:
            chosen.setdefault(str(run["method"]), run)
    lr = {m: [positive(v) for v in r["curve"].get("lr") or []] for m, r in chosen.items()}
    loss = {m: smooth(r["curve"].get("loss") or []) for m, r in chosen.items()}
    # Schedules that end at 0 and runs that diverge would otherwise squeeze all else together.
    floor = min([*_starts(lr), max(_known(lr), default=1.0) / 10**LR_DECADES])
    ceiling = LOSS_CEILING * max(_starts(loss), default=1.0)
    lr_shown = [v for v in _known(lr) if v >= floor]
    loss_shown = [v for v in _known(loss) if v <= ceiling]
    lr_caption = f"Learning rate at each optimizer step; {_seed_note(seed, styles, lr)}."
    loss_caption = (
        "Training loss, an exponential moving average over "
        f"{100 * SMOOTHED_SHARE:.0f} % of the run; {_seed_note(seed, styles, loss)}."
    )
    return {
        "lr": _curves(chosen, lr, styles, "LR", lr_shown) | {"caption": lr_caption},
        "loss": _curves(chosen, loss, styles, "training loss", loss_shown)
        | {"caption": loss_caption},
    }


def _known(values: Series) -> list[float]:
    return [v for series in values.values() for v in series if v is not None]


def _starts(values: Series) -> list[float]:
    firsts = (next((v for v in series if v is not None), None) for series in values.values())
    return [v for v in firsts if v is not None]


def smooth(values: Sequence[Any]) -> list[float | None]:
    """Average the loss exponentially; missing values stay missing and count for nothing."""
    keep = 1.0 - 1.0 / max(1.0, SMOOTHED_SHARE * len(values))
    total = weight = 0.0
    averages: list[float | None] = []
    for value in map(positive, values):
        if value is not None:
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(None if value is None else total / weight)
    return averages


def _curves(
    chosen: Mapping[str, Row],
    values: Series,
    styles: Mapping[str, Style],
    title: str,
    shown: Sequence[float],
) -> Plot:
    """Draw one line a method, the learned ones on top, and say the same in words."""
    traces = []
    for method in sorted(chosen, key=is_learned):
        steps, kept = thin(chosen[method]["curve"].get("step") or [], values[method])
        style = styles[method]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "meta": style.index,
                "x": steps,
                "y": kept,
                "line": {"color": style.color, "width": style.width, "dash": style.dash},
                "hovertemplate": f"{escape(method)}<br>step %{{x}}: %{{y:.3g}}<extra></extra>",
            }
        )
    xaxis = {"title": {"text": "optimizer step"}}
    yaxis = log_axis(shown, f"{title}, log scale")
    label = f"{title} over optimizer steps. " + _in_words(values)
    return {"traces": traces, "layout": {"xaxis": xaxis, "yaxis": yaxis}, "label": label}


def thin(
    steps: Sequence[Any], values: Sequence[float | None]
) -> tuple[list[Any], list[float | None]]:
    """Keep evenly spaced points and the last one, rounded to 5 digits."""
    pairs = list(zip(steps, values, strict=False))
    stride = max(1, math.ceil(len(pairs) / DRAWN_POINTS))
    kept = pairs[::-1][::stride][::-1]
    return [s for s, _ in kept], [None if v is None else float(f"{v:.5g}") for _, v in kept]


def _in_words(values: Series) -> str:
    parts = []
    for method, series in values.items():
        known = [v for v in series if v is not None]
        if known:
            ends = f"from {known[0]:.2g} to {known[-1]:.2g}, highest {max(known):.2g}"
            parts.append(f"{method}: {ends}.")
    return " ".join(parts) or "Not measured."


def _seed_note(seed: Any, styles: Mapping[str, Style], values: Series) -> str:
    if seed is None:
        return "not measured"
    missing = [m for m in styles if all(v is None for v in values.get(m, ()))]
    return f"seed {seed}" + (f"; not measured: {', '.join(missing)}" if missing else "")
