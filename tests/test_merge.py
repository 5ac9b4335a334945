"""Joint reports of several evaluations."""

import json
from dataclasses import asdict

import pytest

from lrenv.errors import InputError
from lrenv.training.merge import merge, report
from lrenv.training.records import RunRecord
from lrenv.training.settings import ReportSettings


def results(data: str, *runs: tuple[str, str, int, float]) -> dict:
    rows = [
        RunRecord(task, method, "", seed, ratio, ratio, ratio, 0.5, 1.0, 1.0, False, 1.0, None)
        for task, method, seed, ratio in runs
    ]
    return {
        "format": 1,
        "title": "Test",
        "settings": {"seeds": 1},
        "data": {"name": data, "note": f"{data}, of here"},
        "environment": {"lrenv": "0"},
        "created": "2026-01-01T00:00:00+00:00",
        "runs": [asdict(row) for row in rows],
        "summary": [],
    }


ONE = results("digits", ("a", "x", 0, 2.0), ("a", "y", 0, 1.0))
TWO = results("wine", ("a", "x", 0, 9.0), ("b", "x", 0, 0.5), ("a", "x", 1, 1.0))


def test_runs_are_joined_and_the_first_of_equals_counts():
    joint = merge([ONE, TWO])

    assert [(r["task"], r["method"], r["seed"], r["ratio"]) for r in joint["runs"]] == [
        ("a", "x", 0, 2.0),
        ("a", "y", 0, 1.0),
        ("b", "x", 0, 0.5),
        ("a", "x", 1, 1.0),
    ]
    assert joint["data"] == {"name": "digits, wine", "note": "digits, of here; wine, of here"}
    assert {s["method"]: s["runs"] for s in joint["summary"]} == {"x": 3, "y": 1}
    assert joint["summary"][0]["geometric_mean_ratio"] == pytest.approx(1.0)
    assert merge([joint, ONE, TWO]) == joint


def test_report_of_folders_and_files(tmp_path):
    for name, part in (("one", ONE), ("two", TWO)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(part))
    paths = (tmp_path / "one", tmp_path / "two" / "results.json")

    page = report(ReportSettings(results=paths, output=tmp_path / "joint"))

    assert page.name == "report.html"
    assert len(json.loads((tmp_path / "joint" / "results.json").read_text())["runs"]) == 4


def test_something_else_than_results(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="Expected results of lrenv evaluate"):
        report(ReportSettings(results=(tmp_path,), output=tmp_path / "joint"))
    with pytest.raises(InputError, match=r"at .*none, got: no such file; name"):
        report(ReportSettings(results=(tmp_path / "none",), output=tmp_path / "joint"))
