"""The page of any trials of the policy database: LRs, losses, which LR was how good, a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from lrenv.errors import InputError
from lrenv.files import write_atomic
from lrenv.policies.lrbench import Composition, LRPolicy, parse_policy
from lrenv.training.bench.database import TrialRecord
from lrenv.training.report_curves import thin
from lrenv.training.report_page import scroll_table, simple_page, table_head
from lrenv.training.run_report import figure_html

_NAMED = 8
_OTHERS = {"color": "rgba(122,127,135,0.35)", "width": 1}

_BODY = Template("""<p>$text</p>
<script>$library</script>
<figure>$rates<figcaption>Learning rates. $named</figcaption></figure>
<figure>$losses<figcaption>Validation losses of the same trials.</figcaption></figure>
<figure>$peaks<figcaption>Every trial by its highest learning rate. $missing</figcaption></figure>
<h2>Every trial</h2>
$table""")


def write_trials_page(path: Path, title: str, records: Sequence[TrialRecord]) -> Path:
    """Write the page of some trials and return its path.

    Args:
        path: The file to write.
        title: Its title, plain text.
        records: The trials with their curves; names in the legend go to the best of each task.
    """
    ranked = _ranked(records)
    tasks = {record.task for record in records}
    name = trial_name if len(tasks) == 1 else lambda r: f"{trial_name(r)}, {r.task}"
    best = [record for record in ranked[:_NAMED] if math.isfinite(_loss(record))]
    others = ranked[len(best) :]
    of_task = "" if len(tasks) == 1 else " of their task"
    named = f"The {len(best)} with the lowest validation loss{of_task} have names; "
    named += "click one to hide it."
    points = [record for record in ranked if _highest(record) and _loss(record) < math.inf]
    body = _BODY.substitute(
        library=get_plotlyjs(),
        text=escape(f"Trials: {len(records)}, tasks: {len(tasks)}."),
        named=escape(f"{named} The others are grey." if others else named),
        rates=curves(best, "lr", "learning rate", name, others),
        losses=curves(best, "val_loss", "validation loss", name, others),
        peaks=_peaks(points, name),
        missing=f"Without learning rates or a finite loss: {len(records) - len(points)}.",
        table=_table(ranked),
    )
    write_atomic(path, lambda temporary: temporary.write_text(simple_page(title, body), "utf-8"))
    return path


def trial_name(record: TrialRecord) -> str:
    """A name for legends: the policy and the seed."""
    return f"{short_policy(record)}, seed {record.seed}"


def short_policy(record: TrialRecord) -> str:
    """LRBench's policies by kind and peak, as their notation is long; others by name."""
    try:
        return " – ".join(f"{p.kind} {peak(p):.2g}" for p in policies_of(record))
    except InputError:  # Not in LRBench's notation.
        return f"{record.policy_kind}: {record.policy}"


def policies_of(record: TrialRecord) -> tuple[LRPolicy, ...]:
    """LRBench's policies of a trial, several of a composition.

    Raises:
        InputError: Its policy is none of LRBench's.
    """
    policy = parse_policy(record.policy)
    return policy.policies if isinstance(policy, Composition) else (policy,)


def peak(policy: LRPolicy) -> float:
    """The highest LR that one of LRBench's policies names."""
    return float(max(policy.values["k0"], policy.values.get("k1", 0.0)))


def curves(
    records: Iterable[TrialRecord],
    column: str,
    title: str,
    name: Callable[[TrialRecord], str],
    others: Iterable[TrialRecord] = (),
) -> str:
    """A column of the curves over optimizer steps, as HTML; the page brings the library.

    The axis is logarithmic, but for losses of which some are not above 0.

    Args:
        records: Trials that the legend names.
        column: Such as ``lr`` or ``val_loss``.
        title: Title of the axis.
        name: From a trial to its name.
        others: Trials that are drawn in grey behind them.
    """
    grey = [
        _line(r, column, name, line=_OTHERS, showlegend=False, hoverinfo="name") for r in others
    ]
    lines = [line for line in (*grey, *(_line(r, column, name) for r in records)) if line]
    if not lines:
        return "<p>No trial reported any.</p>"
    log = column == "lr" or positive(y for line in lines for y in line.y)
    return figure_html(lines, axis_title(title, log), log=log)


def positive(values: Iterable[float | None]) -> bool:
    """Whether all values are above 0, so that they have logarithms; None is left out."""
    return all(value is None or value > 0 for value in values)


def axis_title(title: str, log: bool) -> str:
    """The title of an axis, with its scale where that is logarithmic."""
    return f"{title}, log scale" if log else title


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as HTML that scrolls on a narrow page; heads and cells are plain text."""
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return scroll_table("Every trial", f"{table_head(heads)}<tbody>{body}</tbody>")


def number_cell(value: float | None, digits: str = ".4g") -> str:
    """A number as a cell; a missing one is said."""
    return "none" if value is None else f"{value:{digits}}"


def _line(record: TrialRecord, column: str, name: Callable[[TrialRecord], str], **how: Any) -> Any:
    if not (record.curve.get(column) and record.curve.get("step")):
        return None
    x, y = thin(record.curve["step"], record.curve[column])
    return go.Scatter(x=x, y=y, name=escape(name(record)), mode="lines", connectgaps=True, **how)


def _ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The best trial of each task first, then the second best; losses of tasks do not compare."""
    by_loss, taken = sorted(records, key=_loss), Counter[str]()
    places = []
    for record in by_loss:
        places.append(taken[record.task])
        taken[record.task] += 1
    return [by_loss[i] for i in sorted(range(len(places)), key=places.__getitem__)]


def _loss(record: TrialRecord) -> float:
    loss = record.metrics.get("val_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _highest(record: TrialRecord) -> float:
    return max((lr for lr in record.curve.get("lr", ()) if lr is not None), default=0.0)


def _peaks(records: Sequence[TrialRecord], name: Callable[[TrialRecord], str]) -> str:
    kinds = dict.fromkeys(record.policy_kind for record in records)
    marks = [
        go.Scatter(
            x=[_highest(record) for record in records if record.policy_kind == kind],
            y=[_loss(record) for record in records if record.policy_kind == kind],
            text=[escape(name(record)) for record in records if record.policy_kind == kind],
            name=escape(kind),
            mode="markers",
        )
        for kind in kinds
    ]
    if not marks:
        return "<p>None.</p>"
    log = positive(map(_loss, records))
    title, x_title = axis_title("validation loss", log), axis_title("highest learning rate", True)
    return figure_html(marks, title, log=log, x_title=x_title, log_x=True)


def _table(records: Sequence[TrialRecord]) -> str:
    heads = ["kind", "policy", "task", "seed", "status", "validation loss", "steps", "seconds"]
    heads += ["sweep", "created", "message"]
    rows = (
        (
            record.policy_kind,
            record.policy,
            record.task,
            str(record.seed),
            record.status,
            number_cell(record.metrics.get("val_loss")),
            str(record.steps),
            number_cell(record.seconds, ".1f"),
            record.sweep,
            record.created[:19].replace("T", " "),
            record.error,
        )
        for record in records
    )
    return table(heads, rows)
