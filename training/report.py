"""The report of an evaluation: a page that needs no network, and a table for the terminal.

A value that was not measured is ``None`` in the results; it is said, never drawn as zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lrenv.files import write_atomic
from lrenv.training.metrics import NOTE
from lrenv.training.report_curves import curve_plots
from lrenv.training.report_page import PAGE, SCRIPT, STYLE, number, scroll_table, table_head
from lrenv.training.report_plots import (
    ROW_HEIGHT,
    Row,
    Style,
    is_learned,
    is_reference,
    method_styles,
    positive,
    profile_plot,
    ratio_plot,
)

MISSING = "–"
INFINITE = "∞"
NBSP = "\u00a0"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"


def _loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _accuracy(value: float) -> str:
    return f"{100 * value:.1f}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in the results, its title, and how a value is written."""

    key: str
    title: str
    show: Callable[[float], str]
    better: int = 0
    """1 if higher is better, -1 if lower is, 0 if neither."""
    interval: bool = False
    """Whether the row's ``low`` and ``high`` belong to this value."""

    def text(self, row: Row) -> str:
        """Write the row's value, with its interval, or the sign for a missing one."""
        value, low, high = (number(row.get(key)) for key in (self.key, "low", "high"))
        if value is None:
            # A diverged run has no mean loss, but its place in the ratios on test data.
            unbounded = self.key.endswith(("ratio", "loss")) and not self.key.endswith("test_ratio")
            return INFINITE if row.get("diverged") and unbounded else MISSING
        text = self.show(value)
        if self.interval and low is not None and high is not None:
            text += f" ({self.show(low)}–{self.show(high)})"
        return text


SUMMARY = (
    Column("geometric_mean_ratio", f"Mean ratio (95{NBSP}%)", _ratio, -1, interval=True),
    Column("median_ratio", "Median ratio", _ratio, -1),
    Column("worst_ratio", "Worst ratio", _ratio, -1),
    Column("test_ratio", "Mean test ratio", _ratio, -1),
    Column("wins", "Wins %", _percent, 1),
    Column("diverged", "Diverged", _count, -1),
    Column("tuning_runs", "Tuning runs", _count, -1),
    Column("val_loss", "Val. loss", _loss, -1),
    Column("test_accuracy", "Test acc. %", _accuracy, 1),
    Column("runs", "Runs", _count),
)
"""Columns of the terminal's table, which leave the names of methods room, and the page's."""
PAGE_SUMMARY = (
    *SUMMARY[:4],
    Column("median_test_ratio", "Median test ratio", _ratio, -1),
    SUMMARY[4],
    Column("profile_area", "Profile area %", _percent, 1),
    Column("median_time", "Time to tuned %", _percent, -1),
    Column("reached", "Tuned reached %", _percent, 1),
    *SUMMARY[5:8],
    Column("mean_train_loss", "Train loss", _loss, -1),
    *SUMMARY[8:],
)
METRICS = (
    Column("top1", "Top-1 %", _accuracy, 1),
    Column("top5", "Top-5 %", _accuracy, 1),
    Column("confidence", "Confidence %", _accuracy),
    Column("confidence_std", "Its deviation", _accuracy),
    Column("cdac", "CDAC", _accuracy),
    Column("median_steps", "Steps to tuned", _count, -1),
    Column("median_seconds", "Seconds to tuned", lambda value: f"{value:.2f}", -1),
    Column("loss_gap", "Test − train loss", _loss),
)
"""Columns of the page's second table: utility, cost and robustness, as LRBench measures them."""
RUNS = (
    Column("seed", "Seed", _count),
    Column("ratio", "Ratio", _ratio),
    Column("val_loss", "Val. loss", _loss),
    Column("test_loss", "Test loss", _loss),
    Column("test_accuracy", "Test acc. %", _accuracy),
    Column("mean_train_loss", "Train loss", _loss),
    Column("seconds", "Seconds", lambda value: f"{value:.1f}"),
)


def methods_of(results: Row) -> list[str]:
    """List the methods once each, in the order of the summary, then of the runs."""
    rows = [*(results.get("summary") or []), *(results.get("runs") or [])]
    return list(dict.fromkeys(str(row["method"]) for row in rows))


def summary_rows(results: Row) -> list[Row]:
    """Return one summary row a method; a method without one gets a row without values."""
    given = {str(row["method"]): row for row in results.get("summary") or []}
    return [given.get(method, {"method": method}) for method in methods_of(results)]


def best_texts(rows: Sequence[Row]) -> dict[str, str]:
    """Map a column's key to its best value as written, where a competitor stands out."""
    best = {}
    for column in (*PAGE_SUMMARY, *METRICS):
        values = [number(row.get(column.key)) for row in rows if not is_reference(row["method"])]
        known = sorted(v for v in values if v is not None)
        if column.better and len({column.show(v) for v in known}) > 1:
            best[column.key] = column.show(known[-1] if column.better > 0 else known[0])
    return best


def is_best(row: Row, column: Column, best: Mapping[str, str]) -> bool:
    """Whether a competitor's value reads like the best one, so that ties are marked alike."""
    value = number(row.get(column.key))
    if value is None or is_reference(row["method"]):
        return False
    return column.show(value) == best.get(column.key)


def results_table(results: Mapping[str, Any]) -> Table:
    """Make the summary for the terminal: one row a method, the best of each column in bold."""
    table = Table(
        title=Text(_title(results)),
        caption=TEST_RATIO,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("Method")
    for column in SUMMARY:
        table.add_column(_stacked(column.title), justify="right", no_wrap=True)
    rows = summary_rows(results)
    best = best_texts(rows)
    for row in rows:
        label = Text(row["method"], style="bold" if is_learned(row["method"]) else "")
        if is_reference(row["method"]):
            label.append(" (reference)", style="dim")
        cells = [
            Text(
                _stacked(column.text(row)), style="bold green" if is_best(row, column, best) else ""
            )
            for column in SUMMARY
        ]
        table.add_row(label, *cells)
    return table


def _stacked(text: str) -> str:
    # All columns fit 80 characters this way; rich would shrink the wrong ones.
    return text.replace(" ", "\n")


def write_report(results: Mapping[str, Any], path: Path) -> Path:
    """Write the results as one HTML page with everything in it, and return its path.

    Args:
        results: What the evaluation measured, as plain values.
        path: The file to write; its folder is made where it is missing.

    Raises:
        InputError: The folder cannot be written.
    """
    text = render(results)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def render(results: Mapping[str, Any]) -> str:
    """Fill in the page."""
    # Imported here so that the terminal's table does without plotly.
    from plotly.offline import get_plotlyjs

    styles = method_styles(methods_of(results))
    curves = curve_plots(results, styles)
    plots = {
        "ratio": ratio_plot(results, styles),
        "profile": profile_plot(results, styles),
        "tasks": list(curves.values()),
    }
    return PAGE.substitute(
        title=escape(_title(results)),
        introduction=escape(introduction(results)),
        summary=_summary_html(results, styles, PAGE_SUMMARY, "Summary table"),
        summary_note=_with_metrics(results, styles),
        ratio_label=escape(_ratio_label(results)),
        ratio_height=ROW_HEIGHT * max(1, len(styles)) + 70,
        ratio_caption=escape(_ratio_caption(results)),
        profile_label=escape(_profile_label(results)),
        tasks="".join(f'<option value="{i}">{escape(t)}</option>' for i, t in enumerate(curves)),
        legend="".join(_legend_button(method, style) for method, style in styles.items()),
        runs=_runs_html(results),
        settings=_settings_html(results),
        data=_json(plots),
        plotly=get_plotlyjs(),
        style=STYLE,
        script=SCRIPT,
    )


TEST_RATIO = (
    "Mean test ratio: the geometric mean of final test losses over the tuned expert's; a run "
    "counts as e² at most, and where it diverged."
)
SUMMARY_NOTE = (
    "Marked: the best of a column among the competitors; the references are there to compare with. "
    "Mean ratio: the geometric mean over tasks, with its bootstrap 95 % interval. "
    f"{TEST_RATIO} Wins: runs that beat the tuned expert. Profile area: that under a method's line "
    "in the profile. Time to tuned: the median share of a run until its validation loss is at most "
    "the tuned expert's final one, which the given share of runs reaches at all. Tuning runs: runs "
    f"spent beforehand to choose the LR. {MISSING}: not measured, or never reached."
)


def _title(results: Row) -> str:
    return str(results.get("title") or "Evaluation")


def _json(data: Any) -> str:
    # "<" would let a name close the script element.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def introduction(results: Row) -> str:
    """Say what was compared, on which data, and what a ratio means, in three sentences."""
    runs = results.get("runs") or []
    tasks = {str(run["task"]) for run in runs}
    seeds = {run.get("seed") for run in runs}
    data = results.get("data") or {}
    note = str(data.get("note") or "").strip().rstrip(".")
    compared = f"{len(methods_of(results))} ways to set the learning rate, on {len(tasks)} task"
    compared += f"{'' if len(tasks) == 1 else 's'} and {len(seeds)} seed"
    compared += f"{'' if len(seeds) == 1 else 's'} ({len(runs)} runs)."
    return (
        f"This page compares {compared} "
        f"The data are {data.get('name') or 'not named'}{f': {note}' if note else ''}. "
        "A ratio is a run's final validation loss over that of the tuned expert on the same task "
        "and seed, so 1.00 is as good as tuning, and lower is better."
    )


def _summary_html(
    results: Row, styles: Mapping[str, Style], columns: Sequence[Column], label: str
) -> str:
    rows = summary_rows(results)
    best = best_texts(rows)
    body = []
    for row in rows:
        method = str(row["method"])
        kind = "reference" if is_reference(method) else "learned" if is_learned(method) else "other"
        badge = ' <span class="badge">reference</span>' if kind == "reference" else ""
        cells = "".join(_cell(column.text(row), is_best(row, column, best)) for column in columns)
        name = f'<th scope="row">{styles[method].swatch()}{escape(method)}{badge}</th>'
        body.append(f'<tr class="{kind}">{name}{cells}</tr>')
    head = table_head(["Method", *(column.title for column in columns)])
    return scroll_table(label, f"{head}<tbody>{''.join(body)}</tbody>", "summary")


def _with_metrics(results: Row, styles: Mapping[str, Style]) -> str:
    """The note on the summary, and behind it the table of LRBench's metrics."""
    table = _summary_html(results, styles, METRICS, "Utility, cost and robustness")
    return (
        f"{escape(SUMMARY_NOTE)}</p>\n<h3>Utility, cost and robustness</h3>\n{table}\n"
        f'<p class="note">{escape(NOTE)}'
    )


def _cell(text: str, best: bool = False) -> str:
    if best:
        return f'<td class="best">{escape(text)}<span class="unseen"> best</span></td>'
    return f"<td>{escape(text)}</td>"


def _legend_button(method: str, style: Style) -> str:
    return (
        f'<button type="button" aria-pressed="true" data-method="{style.index}">'
        f"{style.swatch()}{escape(method)}</button>"
    )


def _ratio_label(results: Row) -> str:
    rows = [f"{row['method']} {SUMMARY[0].text(row)}" for row in summary_rows(results)]
    return f"Ratio to the tuned expert, geometric mean and 95 % interval: {'; '.join(rows)}."


def _profile_label(results: Row) -> str:
    area = next(column for column in PAGE_SUMMARY if column.key == "profile_area")
    rows = [f"{row['method']} {area.text(row)}" for row in summary_rows(results)]
    return f"Performance profile; area under each line in percent: {'; '.join(rows)}."


def _ratio_caption(results: Row) -> str:
    missing: dict[str, int] = {}
    for run in results.get("runs") or []:
        if positive(run.get("ratio")) is None:
            missing[str(run["method"])] = missing.get(str(run["method"]), 0) + 1
    listed = ", ".join(f"{method} ({count})" for method, count in missing.items())
    return (
        "A dot is a run, a diamond the geometric mean with its bootstrap 95 % interval; left of "
        "the line at 1.00, the tuned expert is beaten."
        + (f" Runs that diverged or were not measured are not drawn: {listed}." if listed else "")
    )


def _runs_html(results: Row) -> str:
    rows = []
    for run in results.get("runs") or []:
        words = (run.get("task"), run.get("detail") or MISSING)
        text = "".join(f'<td class="text">{escape(str(word))}</td>' for word in words)
        cells = "".join(_cell(column.text(run)) for column in RUNS)
        cells += _cell("yes" if run.get("diverged") else "no")
        rows.append(f'<tr><th scope="row">{escape(str(run["method"]))}</th>{text}{cells}</tr>')
    titles = ["Method", "Task", "Detail", *(column.title for column in RUNS), "Diverged"]
    content = f"{table_head(titles)}<tbody>{''.join(rows)}</tbody>"
    return scroll_table("Every run", content, "runs")


def _settings_html(results: Row) -> str:
    groups = [results.get("settings") or {}, results.get("environment") or {}]
    groups.append({"created": results.get("created"), "format": results.get("format")})
    pairs = [pair for group in groups for pair in group.items()]
    items = (f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in pairs)
    return f"<dl>{''.join(items)}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or MISSING
    return MISSING if value is None else str(value)
