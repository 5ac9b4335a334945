import json
import math
import re
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lrenv.training.report import best_texts, results_table, summary_rows, write_report
from lrenv.training.report_curves import smooth, thin
from lrenv.training.report_plots import log_axis, method_styles

HOSTILE = "learned: <script>alert(1)</script>"
METHODS = (HOSTILE, "cosine, default peak", "LR-matched constant", "tuned expert")


def run(task: str, method: str, seed: int) -> dict[str, Any]:
    ratio = {HOSTILE: 0.97, "tuned expert": 1.0}.get(method, 1.37)
    steps = list(range(4))
    rates = [1e-3, 1e-3, 5e-4, 0.0] if seed == 3 else [1.0] * 4
    return {
        "task": task,
        "method": method,
        "detail": "peak 0.01",
        "seed": seed,
        "ratio": ratio,
        "val_loss": 0.2 * ratio,
        "test_loss": 0.3 * ratio,
        "test_accuracy": 0.91,
        "mean_train_loss": 0.4,
        "diverged": False,
        "seconds": None,
        "curve": {"step": steps, "loss": [2.0, 1.0, None, 0.5], "lr": rates},
    }


def summary(method: str, mean: float) -> dict[str, Any]:
    return {
        "method": method,
        "runs": 4,
        "tuning_runs": 27 if method == "tuned expert" else 0,
        "median_ratio": mean,
        "geometric_mean_ratio": mean,
        "low": mean - 0.02,
        "high": mean + 0.04,
        "worst_ratio": None,
        "test_ratio": mean + 0.01,
        "wins": 0.25,
        "diverged": 0,
        "mean_train_loss": 0.4,
        "val_loss": 0.2 * mean,
        "test_accuracy": 0.91,
        "top1": 0.91,
        "top5": 0.994,
        "confidence": 0.876,
        "confidence_std": 0.1,
        "cdac": 0.0321,
        "median_steps": 450.0,
        "median_seconds": None,
        "loss_gap": 0.0125,
    }


def example() -> dict[str, Any]:
    means = (0.97, 1.37, 1.37, 1.0)
    return {
        "format": 1,
        "title": "Tiny & small",
        "settings": {"seeds": [3, 4], "threads": 1, "device": None},
        "data": {"name": "MNIST-5k", "note": "the 5,000-image set."},
        "environment": {"lrenv": "0.1.0", "threads": 2},
        "created": "2026-01-01T00:00:00+00:00",
        "runs": [run(t, m, s) for t in ("task <a>", "task b") for m in METHODS for s in (4, 3)],
        "summary": [summary(m, mean) for m, mean in zip(METHODS, means, strict=True)],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return example()


class Page(HTMLParser):
    """Collects what a reader gets: tables as rows of texts, options, labels, scripts, links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.options: list[str] = []
        self.scripts: list[str] = []
        self.labels: dict[str, str] = {}
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[key]) for key in ("src", "href") if key in given]
        if given.get("id") and given.get("aria-label"):
            self.labels[str(given["id"])] = str(given["aria-label"])
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "option":
            self.options.append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if inside == "option":
            self.options[-1] += data
        elif {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def page(results: dict[str, Any], tmp_path: Path) -> Page:
    path = write_report(results, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_page_is_closed_and_asks_the_network_for_nothing(page: Page) -> None:
    assert page.open == []
    assert page.addresses == []
    assert len(page.scripts) == 3
    assert "plotly.js v" in page.scripts[1][:200]


def test_summary_table_holds_the_values(page: Page) -> None:
    head, *rows = page.tables[0]
    assert [row[0] for row in rows] == [
        HOSTILE,
        "cosine, default peak",
        "LR-matched constant reference",
        "tuned expert reference",
    ]
    by_title = dict(zip(head, rows[1], strict=True))
    assert by_title["Mean ratio (95\u00a0%)"] == "1.37 (1.35–1.41)"
    assert by_title["Wins %"] == "25"
    assert by_title["Test acc. %"] == "91.0"
    assert by_title["Worst ratio"] == "–"
    assert by_title["Mean test ratio"] == "1.38"
    assert dict(zip(head, rows[3], strict=True))["Tuning runs"] == "27"


def test_second_table_holds_utility_cost_and_robustness(page: Page) -> None:
    assert page.tables[1][0][1:] == [
        "Top-1 %",
        "Top-5 %",
        "Confidence %",
        "Its deviation",
        "CDAC",
        "Steps to tuned",
        "Seconds to tuned",
        "Test − train loss",
    ]
    assert page.tables[1][2] == [
        "cosine, default peak",
        "91.0",
        "99.4",
        "87.6",
        "10.0",
        "3.2",
        "450",
        "–",
        "0.013",
    ]
    assert "runs in lockstep, which those of experts are, have no time of their own" in page.text
    assert (
        "over the tuned expert's; a run counts as e² at most, and where it diverged." in page.text
    )


def test_introduction_names_the_data_and_counts(page: Page) -> None:
    assert "compares 4 ways to set the learning rate, on 2 tasks and 2 seeds (16 runs)" in page.text
    assert "The data are MNIST-5k: the 5,000-image set. A ratio" in page.text


def test_settings_and_environment_may_share_a_name(page: Page) -> None:
    assert re.findall(r"threads(\d)", page.text) == ["1", "2"]
    assert "seeds3, 4" in page.text
    assert "device–" in page.text


def test_names_are_escaped_everywhere(page: Page) -> None:
    data = page.scripts[0]
    assert "<" not in data
    traces = json.loads(data)["tasks"][0]["lr"]["traces"]
    assert "learned: &lt;script&gt;" in traces[-1]["hovertemplate"]
    assert page.labels["ratio-plot"].count(HOSTILE) == 1
    assert page.text.count(HOSTILE) >= 3


def test_tasks_can_be_chosen_and_show_the_lowest_seed(page: Page) -> None:
    assert page.options == ["task <a>", "task b"]
    plots = json.loads(page.scripts[0])["tasks"]
    assert len(plots) == 2
    for task in plots:
        assert task["lr"]["caption"] == "Learning rate at each optimizer step; seed 3."
        assert [trace["meta"] for trace in task["lr"]["traces"]] == [1, 2, 3, 0]
        assert "from 0.001 to 0.0005, highest 0.001" in task["lr"]["label"]


def test_a_missing_or_zero_value_is_a_gap(page: Page) -> None:
    task = json.loads(page.scripts[0])["tasks"][0]
    assert task["lr"]["traces"][0]["y"] == [0.001, 0.001, 0.0005, None]
    assert task["loss"]["traces"][0]["y"] == [2.0, 1.0, None, 0.5]


def test_a_run_without_ratio_is_said_and_not_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    lost = {"ratio": None, "val_loss": None, "test_loss": None}
    results["runs"][2] |= {**lost, "diverged": True}
    page = Page(write_report(results, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "not drawn: cosine, default peak (1)." in page.text
    traces = json.loads(page.scripts[0])["ratio"]["traces"]
    dots = [t for t in traces if "text" in t and t["hovertemplate"].startswith("cosine")]
    assert [len(t["x"]) for t in dots] == [3]
    row = page.tables[2][3]
    assert row[3:7] == ["4", "∞", "∞", "∞"]
    assert row[-1] == "yes"


def test_means_over_a_diverged_run_are_infinite(results: dict[str, Any], tmp_path: Path) -> None:
    results["summary"][1] |= {"diverged": 1, "test_ratio": None}
    results["summary"][1] |= {"geometric_mean_ratio": None, "val_loss": None}
    head, *rows = Page(write_report(results, tmp_path / "r.html").read_text("utf-8")).tables[0]
    finite, diverged = (dict(zip(head, row, strict=True)) for row in rows[:2])
    titles = ("Mean ratio (95\u00a0%)", "Worst ratio", "Val. loss")
    assert [diverged[title] for title in titles] == ["∞", "∞", "∞"]
    assert diverged["Mean test ratio"] == "–"
    assert finite["Worst ratio"] == "–"
    text = StringIO()
    Console(file=text, width=80).print(results_table(results))
    assert text.getvalue().count("∞") >= 2


def test_best_is_chosen_among_the_competitors(results: dict[str, Any], tmp_path: Path) -> None:
    results["summary"][2]["median_ratio"] = 0.97
    results["summary"][3]["median_ratio"] = 0.5
    page = Page(write_report(results, tmp_path / "r.html").read_text(encoding="utf-8"))
    column = page.tables[0][0].index("Median ratio")
    assert [row[column] for row in page.tables[0][1:]] == ["0.97 best", "1.37", "0.97", "0.50"]
    best = best_texts(summary_rows(results))
    assert best["median_ratio"] == "0.97"
    assert best["val_loss"] == "0.194"
    assert "wins" not in best
    assert "worst_ratio" not in best


@pytest.mark.parametrize("empty", [{}, {"runs": [], "summary": [], "data": None, "title": None}])
def test_empty_results_make_a_page_and_a_table(empty: dict[str, Any], tmp_path: Path) -> None:
    page = Page(write_report(empty, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "compares 0 ways" in page.text
    assert page.options == []
    assert results_table(empty).row_count == 0


def test_runs_without_curves_or_summary(results: dict[str, Any], tmp_path: Path) -> None:
    results["summary"] = None
    for each in results["runs"]:
        each["curve"] = None
    page = Page(write_report(results, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.tables[0][1] == [HOSTILE, *["–"] * 15]
    assert page.tables[1][1] == [HOSTILE, *["–"] * 8]
    task = json.loads(page.scripts[0])["tasks"][0]
    assert task["loss"]["traces"] == []
    assert task["loss"]["caption"].endswith("; not measured.")


def test_the_profile_counts_runs_within_each_ratio(results: dict[str, Any], tmp_path: Path) -> None:
    ratios = iter([0.9, 1.5, None, 7.0])
    for each in results["runs"]:
        if each["method"] == HOSTILE:
            each["ratio"] = next(ratios)
    page = Page(write_report(results, tmp_path / "r.html").read_text(encoding="utf-8"))

    profile = json.loads(page.scripts[0])["profile"]
    trace = next(t for t in profile["traces"] if "&lt;script" in t["hovertemplate"])
    assert trace["x"] == [1.0, 1.0, 1.5, 2.0]
    assert trace["y"] == [0.0, 0.25, 0.5, 0.5]
    assert "profile" in page.labels["profile-plot"]


def test_terminal_table_has_a_row_a_method_and_fits_80_columns(results: dict[str, Any]) -> None:
    results["summary"][0]["method"] = "learned: [/b]"
    results["runs"] = []
    table = results_table(results)
    assert table.row_count == 4
    text = StringIO()
    Console(file=text, width=80).print(table)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "[/b]" in text.getvalue()
    assert "counts as e²" in text.getvalue()
    assert any(re.search(r"0\.97 +0\.97 +– +0\.98 +25 +0 +0 +0\.194 +91\.0 +4", x) for x in lines)


def test_styles_tell_methods_apart() -> None:
    styles = method_styles([*METHODS, *(f"method {i}" for i in range(9))])
    assert styles[HOSTILE].width == 2 * styles["cosine, default peak"].width
    assert styles["tuned expert"].color == styles["LR-matched constant"].color
    assert len({(s.color, s.dash) for s in styles.values()}) == 13


def test_smooth_is_unbiased_and_leaves_gaps() -> None:
    averages = smooth([3.0] * 100 + [None] + [1.0] * 99)
    assert averages[:100] == pytest.approx([3.0] * 100)
    assert averages[100] is None
    # 200 values: a time constant of 4 steps, so the last of the old mean is (3/4)^n.
    weight = (1 - 0.75**100) / (1 - 0.75**101)
    assert averages[101] == pytest.approx(0.75 * weight * 3 + (1 - 0.75 * weight), rel=1e-9)


def test_thin_keeps_the_last_point() -> None:
    steps, values = thin(list(range(1501)), [1.0] * 1501)
    assert steps[-1] == 1500
    assert len(steps) == len(values) == 501
    assert {b - a for a, b in pairwise(steps)} == {3}


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.98, 1.6], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]),
        ([0.9, 6.0], [0.9, 1, 2, 3, 4, 5, 6]),
        ([2e-5, 0.5], [1e-4, 1e-3, 1e-2, 0.1]),
        ([1.0], [0.98, 0.99, 1.0, 1.01, 1.02]),
    ],
)
def test_log_axis_has_round_ticks(values: list[float], ticks: list[float]) -> None:
    axis = log_axis(values, "x")
    assert axis["tickvals"] == pytest.approx(ticks)
    low, high = axis["range"]
    assert low < math.log10(min(values)) <= math.log10(max(values)) < high
