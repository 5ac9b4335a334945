"""``lrenv range-test``: the learning rates that a trainee can be trained at, as a page."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lrenv.files import make_folder, write_atomic
from lrenv.range_test import VALIDATED_STEPS, RangeTest, range_test
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec, batch_order
from lrenv.training.progress import console
from lrenv.training.report_page import simple_page
from lrenv.training.runfolder import write_json
from lrenv.training.settings import RangeTestSettings

VALIDATION_EXAMPLES = 512

_BODY = Template("""<p>$text</p>
<figure>$plot<figcaption>Loss by learning rate; the band is the range whose losses are within ten
percent of the best, the line the suggestion.</figcaption></figure>""")


def run_range_test(settings: RangeTestSettings) -> Path:
    """Test a trainee's learning rates, print the suggestion, write page and figures.

    Returns:
        The path of the page.

    Raises:
        InputError: A setting cannot be used, or no LR trains the trainee.
    """
    folder = make_folder(settings.output)
    optimizer = OptimizerSpec.usual(settings.optimizer)
    trainee = build_trainee(build_task(settings.trainee, VALIDATED_STEPS, optimizer))
    found = range_test_of(
        trainee,
        low=settings.low,
        high=settings.high,
        mode=settings.mode,
        steps=settings.steps,
        points=settings.points,
    )
    title = f"Range test of {settings.trainee} under {settings.optimizer}"
    text = str(found)
    console.print(text)
    page = simple_page(title, _BODY.substitute(text=escape(text), plot=_plot(found)))
    path = folder / "range_test.html"
    write_json(folder / "range_test.json", asdict(found))
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    console.print(f"Page: {path.resolve()}", markup=False, soft_wrap=True)
    return path


def range_test_of(trainee: SingleTrainee, *, validate: bool = True, **settings: Any) -> RangeTest:
    """Run the range test on a trainee, on passes over its shuffled training data.

    Args:
        trainee: The trainee.
        validate: Judge a grid by the loss on its first validation examples.
        settings: Those of :func:`lrenv.range_test.range_test`.
    """
    data, spec = trainee.dataset, trainee.spec
    n, size = len(data.x_train), min(spec.batch_size, len(data.x_train))
    order = batch_order(n, size, n // size, seed=1)
    held_out = (data.x_val[:VALIDATION_EXAMPLES], data.y_val[:VALIDATION_EXAMPLES])
    return range_test(
        trainee.model,
        trainee.optimizer,
        [(data.x_train[index], data.y_train[index]) for index in order],
        lambda model, batch: spec.loss(model, *batch),
        validation=[held_out] if validate and settings.get("mode") != "sweep" else None,
        **settings,
    )


def _plot(found: RangeTest) -> str:
    from plotly import graph_objects as go

    line = go.Scatter(x=found.lrs, y=found.losses, mode="lines+markers", name="loss")
    figure = go.Figure([line])
    figure.add_vrect(found.low, found.high, fillcolor="#009E73", opacity=0.15, line_width=0)
    figure.add_vline(found.suggestion, line={"dash": "dash", "color": "#D55E00"})
    figure.update_layout(
        height=340, xaxis={"title": "learning rate", "type": "log"}, yaxis_title="loss"
    )
    html: str = figure.to_html(full_html=False)
    return html
