"""Pages in a real browser: charts are drawn, nothing is reported on the console."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from test_monitor import write_log
from test_report import METHODS, example

from lrenv.training.bench.database import TrialRecord
from lrenv.training.bench.monitor import monitor
from lrenv.training.bench.settings import MonitorSettings
from lrenv.training.bench.sweep import Sweep
from lrenv.training.bench.sweep_page import write_sweep_page
from lrenv.training.bench.trials_page import write_trials_page
from lrenv.training.report import write_report

CHROMIUM = which("chromium")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, Debian's package chromium"),
]

SWEEP = Sweep(name="s", task="tiny", task_key="k", total_steps=40)


def trial(index: int, policy: str, loss: float | None, status: str = "done") -> TrialRecord:
    steps = [10, 20, 40] if loss else []
    return TrialRecord(
        uid=str(index),
        task="tiny",
        task_key="k",
        features={},
        policy_kind="learned" if index < 0 else "lrbench",
        policy=policy,
        parameters={"index": index, "drawn": {}},
        seed=0,
        sweep="s",
        status=status,
        error="" if loss else "RuntimeError: <b>no</b>",
        steps=40,
        seconds=1.0 if loss else None,
        metrics={"val_loss": loss} if loss else {},
        curve={"step": steps, "val_loss": [1.0, 0.8, loss][: len(steps)], "lr": [0.1] * len(steps)},
        environment={},
        created="2026-01-01T00:00:00",
    )


TRIALS = [
    trial(-1, "default", 0.5),
    trial(0, "k0_0.1+lrPolicy_FIX", 0.7),
    trial(1, "k0_0.1+k1_0.01+lrPolicy_COS+l_40", 0.6),
    trial(2, "k0_0.9+lrPolicy_FIX", None, "failed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        yield run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[390, 1200], ids=["phone", "desk"])
def visit(browser: Any, scheme: str, request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """Opens a page, which must say nothing on the console and be no wider than the window."""

    @contextmanager
    def opened(path: Path) -> Iterator[Any]:
        size = {"width": request.param, "height": 800}
        page = browser.new_page(color_scheme=scheme, viewport=size)
        told: list[str] = []
        page.on("console", lambda m: told.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(path.as_uri())
        yield page
        assert told == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()

    return opened


def test_the_page_of_a_sweep(visit, tmp_path: Path):
    with visit(write_sweep_page(tmp_path / "sweep.html", SWEEP, TRIALS)) as page:
        page.wait_for_selector(".parcoords")

        assert page.locator(".js-plotly-plot").count() == 3
        assert page.locator(".scatterlayer .trace").count() == 6
        assert page.locator("tbody tr").count() == 4
        assert "none" in page.locator("tbody tr").nth(3).inner_text()
        assert page.locator("tbody b").count() == 0


def test_a_trial_is_hidden_by_its_name(browser, tmp_path: Path):
    path = write_sweep_page(tmp_path / "sweep.html", SWEEP, TRIALS)
    page = browser.new_page()
    page.goto(path.as_uri())
    legend = page.locator(".js-plotly-plot").nth(1).locator(".legendtoggle").first
    lines = page.locator(".js-plotly-plot").nth(1).locator(".scatterlayer .trace")
    playwright.expect(lines).to_have_count(3)
    legend.click()

    playwright.expect(lines).to_have_count(2)
    page.close()


def test_the_page_of_trials(visit, tmp_path: Path):
    trials = [replace(TRIALS[k % 3], uid=str(k), seed=k) for k in range(12)] + [TRIALS[3]]
    with visit(write_trials_page(tmp_path / "trials.html", "Trials", trials)) as page:
        plots = page.locator(".js-plotly-plot")

        assert plots.count() == 3
        assert plots.nth(0).locator(".scatterlayer .trace").count() == 12
        assert plots.nth(0).locator(".legendtoggle").count() == 8
        assert plots.nth(2).locator(".scatterlayer .point").count() == 12
        assert page.locator("tbody tr").count() == 13
        assert page.locator("tbody b").count() == 0


def test_the_page_of_an_evaluation(visit, tmp_path: Path):
    results = example()
    for run in results["runs"]:
        run["curve"]["lr"] = [2.0 if run["task"] == "task b" else 1.0] * 4
    with visit(write_report(results, tmp_path / "report.html")) as page:
        curves = page.locator("#lr-plot .scatterlayer .trace")
        assert page.locator(".js-plotly-plot").count() == 4
        assert curves.count() == len(METHODS)

        page.locator("[data-method]").first.press("Enter")
        assert curves.count() == len(METHODS) - 1
        plot = page.locator("#lr-plot")
        playwright.expect(plot).to_have_attribute("aria-label", re.compile("highest 1"))
        page.select_option("#task", index=1)
        playwright.expect(plot).to_have_attribute("aria-label", re.compile("highest 2"))
        assert curves.count() == len(METHODS) - 1


def test_the_page_of_a_running_job(visit, tmp_path: Path):
    write_log(tmp_path)
    monitor(MonitorSettings(tmp_path, page=True, once=True))
    with visit(tmp_path / "monitor.html") as page:
        assert page.locator("svg path[stroke], svg path[style]").count() > 3
        assert "the loss exploded" in page.inner_text("main")
