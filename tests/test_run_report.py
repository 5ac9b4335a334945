"""The report of one run."""

import json
import re

from lrenv.training.run_report import write_run_report


def test_the_page_holds_curves_tables_and_the_library(tmp_path):
    decisions = [
        {"step": 3, "lr": 0.01, "guard": None},
        {"step": 9, "lr": 0.002, "guard": "the loss exploded"},
    ]
    losses = {"train": {0: 2.5, 1: 1.25}, "validation": {1: 1.75}}
    curves = (losses, {"lr": [0.01] * 8 + [0.002] * 2}, decisions)
    tables = ({"val_loss": 0.123456}, {"data": "<my>.jsonl", "targets": ("a", "b")})
    page = write_run_report(tmp_path / "r.html", "A & B", curves, tables).read_text()

    assert "<h1>A &amp; B</h1>" in page
    assert "&lt;my&gt;.jsonl" in page
    assert "<td>0.1235</td>" in page
    figures = re.findall(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{\"", page, re.S)
    drawn = [trace for figure in figures for trace in json.loads(figure)]
    assert [trace["name"] for trace in drawn] == ["train", "validation", "lr", "decisions"]
    assert drawn[0]["y"] == [2.5, 1.25]
    assert [drawn[2]["y"][drawn[2]["x"].index(k)] for k in drawn[3]["x"]] == drawn[3]["y"]
    assert drawn[3]["marker"]["symbol"] == ["circle", "x"]
    assert len(page) > 10**6  # with plotly's library, so that it needs no network
