"""What ``lrenv monitor`` shows: a run in words, and its page, with charts, in one file of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from lrenv.files import write_atomic
from lrenv.training.report_page import number, scroll_table, simple_page, table_head

if TYPE_CHECKING:
    from lrenv.training.bench.monitor import RunState

Points = Mapping[int, float]

_POINTS = 300  # of a line
_DECISIONS = 30  # in the table
_SILENCE = 300.0  # seconds without a word after which a run may have stopped,
_SILENT_STEPS = 20  # or so many optimizer steps' time
_CHART = Template("""<figure>
<h2>$title</h2>
<div style="display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 0.5rem">
<div class="note" style="display: flex; flex-direction: column; justify-content: space-between;
 text-align: right">$ticks</div>
<svg role="img" aria-label="$label" viewBox="0 0 100 100" preserveAspectRatio="none"
 style="width: 100%; height: 12rem">
<path d="M0 0H100M0 50H100M0 100H100" style="stroke: var(--rule)" vector-effect="non-scaling-stroke"
/>$lines
</svg>
<span></span>
<div class="note" style="display: flex; justify-content: space-between"><span>0</span>
<span>$end</span></div>
</div>
<figcaption>$caption</figcaption>
</figure>
""")
_SHAPE = '<path d="{}" fill="none" vector-effect="non-scaling-stroke" style="{}"/>'
_LINE = "stroke: var(--ink); stroke-width: 1.5px; stroke-linejoin: round"
_DOT = "stroke: var(--accent); stroke-width: 7px; stroke-linecap: round"
_MARK = "stroke: var(--accent); stroke-width: 1.5px; stroke-dasharray: 4 3"


def write_page(
    path: Path, state: RunState, facts: Mapping[str, str], refresh: float | None
) -> None:
    """Write the page.

    Args:
        path: The file.
        state: The run.
        facts: How it stands, in words.
        refresh: Seconds after which a browser loads the page again; None for never.
    """
    page = simple_page(state.name, _body(state, facts, refresh))
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _body(state: RunState, facts: Mapping[str, str], refresh: float | None) -> str:
    end = max(state.total or 0, state.done, 1)
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    share = min(1.0, state.done / end) if state.total else 0.0
    written = datetime.now().astimezone().isoformat(" ", "seconds")
    guards = [step for entry in state.guarded if (step := number(entry.get("step"))) is not None]
    parts = [
        f'<progress value="{share:.4f}" aria-label="Steps done" style="width: 100%"></progress>',
        f"<dl>{items}</dl>",
        chart(
            "Loss",
            state.losses,
            end,
            "Training loss, means of a few steps each; a dot is a validation loss.",
            dots=state.vals,
        ),
        chart(
            "Learning rate",
            state.lrs,
            end,
            "Learning rate; a dashed line is an event of the guard.",
            marks=guards,
        ),
        _decisions(state.decisions),
        f'<p class="note">Written at {escape(written)}.</p>',
    ]
    if refresh is not None:
        parts.append(f"<script>setTimeout(() => location.reload(), {1000 * refresh:.0f})</script>")
    return "\n".join(parts)


def chart(
    title: str,
    line: Points,
    end: int,
    caption: str,
    dots: Points | None = None,
    marks: Sequence[float] = (),
) -> str:
    """Draw values over optimizer steps as HTML; the axis is logarithmic where all are positive.

    Args:
        title: Its heading.
        line: Values to join, by step.
        end: The last step of the axis.
        caption: What stands below it.
        dots: Further values, by step.
        marks: Steps to mark.
    """
    thin, dots = thinned(line), dots or {}
    values = [*(value for _, value in thin), *dots.values()]
    if not values:
        return ""
    log = min(values) > 0.0
    low, high = min(values), max(values)

    def place(step: float, value: float) -> str:
        return f"{100 * step / end:.2f} {100 - 100 * _share(value, low, high, log):.2f}"

    middle = math.sqrt(low * high) if log else (low + high) / 2
    shapes = [_SHAPE.format("M" + "L".join(place(*point) for point in thin), _LINE)] if thin else []
    shapes += [_SHAPE.format(f"M{place(*point)}h0", _DOT) for point in dots.items()]
    shapes += [_SHAPE.format(f"M{100 * step / end:.2f} 0V100", _MARK) for step in marks]
    return _CHART.substitute(
        title=escape(title),
        ticks="".join(f"<span>{value:.3g}</span>" for value in (high, middle, low)),
        label=escape(f"{title} by optimizer step, from {low:.3g} to {high:.3g}"),
        lines="".join(shapes),
        end=end,
        caption=escape(caption + (" Logarithmic axis." if log else "")),
    )


def _share(value: float, low: float, high: float, log: bool) -> float:
    """Height of a value between two others, from 0 to 1."""
    if low == high:
        return 0.5
    at, bottom, top = ((math.log(v) if log else v) for v in (value, low, high))
    return (at - bottom) / (top - bottom)


def thinned(points: Points) -> list[tuple[float, float]]:
    """Steps and values in order, means of neighbours where there are too many."""
    rows = sorted(points.items())
    n = min(_POINTS, len(rows))
    parts = [rows[len(rows) * i // n : len(rows) * (i + 1) // n] for i in range(n)]
    return [(sum(s for s, _ in p) / len(p), sum(v for _, v in p) / len(p)) for p in parts]


def facts(state: RunState, now: float) -> dict[str, str]:
    """How a run stands, in words, by what they are about.

    Args:
        state: The run.
        now: Seconds of the clock.
    """
    quiet = None if state.updated is None else now - state.updated
    silent = quiet is not None and quiet > max(_SILENCE, _SILENT_STEPS * (state.pace or 0.0))
    words = {"State": "running" if state.done else "waiting for the first step"}
    if state.finished:
        words["State"] = "finished"
    elif quiet is not None:
        words["State"] = "silent, perhaps stopped" if silent else words["State"]
        words["State"] += f", last heard of {duration(quiet)} ago"
    total = "" if state.total is None else f" of {state.total}"
    words["Steps"] = f"{state.done}{total}"
    left = state.seconds_left
    if not (state.finished or silent):
        words["Time left"] = "not known" if left is None else duration(left)
    for name, values in (("Loss", state.losses), ("Validation loss", state.vals)):
        if values:
            step = max(values)
            words[name] = f"{values[step]:.4f} at step {step}"
    if state.lrs:
        words["LR"] = f"{state.lrs[max(state.lrs)]:.3g}"
    if state.decisions:
        words["Last decision"] = _decision(state.decisions)
    words["Guard"] = "; ".join(map(guard_event, state.guarded[-3:])) or "no event"
    if len(state.guarded) > 3:
        words["Guard"] = f"{len(state.guarded)} events, the last: {words['Guard']}"
    for name, value in state.metrics.items():
        words[name] = f"{value:.4f}" if isinstance(value, float) else str(value)
    return words


def guard_event(entry: Mapping[str, Any]) -> str:
    """What the guard did at a decision, in words."""
    then = "back to the last good weights" if entry.get("rolled_back") else "the LR was cut"
    return f"at step {entry.get('step')} {entry.get('guard')}, {then}"


def _decision(decisions: Sequence[Mapping[str, Any]]) -> str:
    before, now = (number(entry.get("lr")) for entry in [{}, *decisions][-2:])
    text = f"at step {decisions[-1].get('step')}"
    if now is not None:
        text += f", LR {now:.3g}"
        if before:
            text += f", {now / before:.2f} times the one before"
    return text


def duration(seconds: float) -> str:
    """Write a time in the two largest of its units."""
    whole = max(0, round(seconds))
    for name, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> str:
    if not decisions:
        return ""
    rows = []
    for entry in reversed(decisions[-_DECISIONS:]):
        lr = number(entry.get("lr"))
        shown = "–" if lr is None else f"{lr:.3g}"
        back = ", rolled back" if entry.get("rolled_back") else ""
        words = f"{entry.get('guard') or ''}{back}"
        cells = f'<td>{shown}</td><td class="text">{escape(words)}</td>'
        rows.append(f'<tr><th scope="row">{escape(str(entry.get("step")))}</th>{cells}</tr>')
    head = table_head(("Step", "LR", "Guard"))
    table = scroll_table("Last decisions", f"{head}\n<tbody>{''.join(rows)}</tbody>")
    return f"<h2>Last decisions</h2>\n{table}"
