"""Pages in a real browser: charts are drawn, nothing is reported on the console."""

from pathlib import Path
from shutil import which

import pytest

from lrenv.training.bench.database import TrialRecord
from lrenv.training.bench.sweep import Sweep
from lrenv.training.bench.sweep_page import write_sweep_page

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
def browser():
    with playwright.sync_playwright() as run:
        yield run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_of_a_sweep(browser, tmp_path: Path, scheme, width):
    path = write_sweep_page(tmp_path / "sweep.html", SWEEP, TRIALS)
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    told: list[str] = []
    page.on("console", lambda m: told.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))

    page.goto(path.as_uri())
    page.wait_for_selector(".parcoords")

    assert told == []
    assert page.locator(".js-plotly-plot").count() == 3
    assert page.locator(".scatterlayer .trace").count() == 6
    assert page.locator("tbody tr").count() == 4
    assert "none" in page.locator("tbody tr").nth(3).inner_text()
    assert page.locator("tbody b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_a_trial_is_hidden_by_its_name(browser, tmp_path: Path):
    path = write_sweep_page(tmp_path / "sweep.html", SWEEP, TRIALS)
    page = browser.new_page()
    page.goto(path.as_uri())
    legend = page.locator(".js-plotly-plot").nth(1).locator(".legendtoggle").first
    legend.click()
    page.wait_for_timeout(600)

    assert page.locator(".js-plotly-plot").nth(1).locator(".scatterlayer .trace").count() == 2
    page.close()
