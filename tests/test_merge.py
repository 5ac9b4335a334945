"""Joint reports of several evaluations."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from jobs import make_policy

from lrenv.errors import InputError
from lrenv.policies.frozen import FrozenPolicy
from lrenv.training.compare import ExpertsPart, PolicyPart
from lrenv.training.evaluate import collect_results, compare_all
from lrenv.training.merge import merge, report
from lrenv.training.records import MATCHED, RunRecord
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
    assert joint["summary"][0]["geometric_mean_ratio"] == pytest.approx(2**-0.25)
    assert merge([joint, ONE, TWO]) == joint


def of(*changes: dict[str, Any]) -> dict:
    """Results of runs that differ from one of "y" on "a" as given."""
    row = RunRecord(**ONE["runs"][1])
    return {**ONE, "runs": [asdict(replace(row, **change)) for change in changes]}


def rows(*parts: dict) -> list[tuple[str, str]]:
    return [(run["method"], run["detail"]) for run in merge(parts)["runs"]]


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (
            {"total_steps": 40, "data": "digits", "seed": 1},
            {"total_steps": 80, "data": "digits", "method": "x"},
            "Expected the same task 'a' in all results, got 40 steps on digits and 80 steps on "
            "digits; make a report of each",
        ),
        (
            {"total_steps": 40, "data": "MNIST"},
            {"total_steps": 40, "data": "MNIST-5k"},
            "same task 'a' in all results, got 40 steps on MNIST and 40 steps on MNIST-5k",
        ),
        (
            {"method": "learned: p", "policy": "p", "policy_hash": "1" * 64},
            {"method": "learned: p, rollback", "policy": "p", "policy_hash": "2" * 64},
            f"same policy 'p' in all results, got weights {'1' * 12} and weights {'2' * 12}",
        ),
        (
            {"method": "cosine", "detail": "cosine, peak 0.001"},
            {"method": "cosine", "detail": "cosine, peak 0.3"},
            "same cosine on 'a' in all results, got 'cosine, peak 0.001' and 'cosine, peak 0.3'",
        ),
    ],
    ids=["length", "data", "policy", "peak"],
)
def test_one_name_for_two_things_is_refused(
    one: dict[str, Any], two: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        merge([of(one), of(two)])


def test_nothing_to_join_is_refused():
    with pytest.raises(InputError, match="of at least one evaluation, got none"):
        merge([])


def test_results_may_not_say_what_they_are_of():
    assert len(rows(of({"total_steps": 40, "data": "digits"}), of({"seed": 1}))) == 2


def test_what_was_found_in_a_run_makes_no_other_method():
    tuned, matched, learned = "tuned expert", "LR-matched constant: p", "learned: p"
    one = of(
        {"method": tuned, "detail": "cosine, peak 0.1"},
        {"method": matched, "detail": "constant, peak 0.11"},
        {"method": learned, "detail": "hint 0.1"},
    )
    other = of(
        {"method": tuned, "detail": "linear, peak 0.3"},
        {"method": matched, "detail": "constant, peak 0.12"},
        {"method": learned, "detail": "hint 1"},
    )
    assert rows(one, other) == [
        (tuned, "cosine, peak 0.1"),
        (matched, "constant, peak 0.11"),
        (learned, "hint 0.1"),
        (learned, "hint 1"),
    ]


def test_a_constant_without_a_name_gets_that_of_the_only_policy():
    def lone(policy: str) -> dict:
        return of({"method": f"learned: {policy}"}, {"method": "LR-matched constant"})

    found = [method for method, _ in rows(lone("p"), lone("q"))]
    assert found == [
        "learned: p",
        "LR-matched constant: p",
        "learned: q",
        "LR-matched constant: q",
    ]
    several = of({"method": "learned: p"}, {"method": "learned: q"}, {"method": MATCHED})
    assert rows(several)[-1][0] == MATCHED


def test_evaluations_say_what_they_are_of(tiny_task, tmp_path):
    policy = make_policy(tmp_path)
    other = FrozenPolicy(policy.actor, {**policy.card, "sha256": "b"})
    longer = replace(tiny_task, spec=replace(tiny_task.spec, total_steps=60))

    def evaluated(task, *parts) -> dict:
        records = compare_all([("tiny", task)], parts, tmp_path)
        return json.loads(json.dumps(collect_results("Test", {}, [task], records)))

    first = evaluated(tiny_task, PolicyPart(policy), ExpertsPart())
    again = evaluated(tiny_task, PolicyPart(policy, (0.1,)), ExpertsPart())
    joint = merge([first, again])["runs"]
    assert len(joint) == len(first["runs"]) + 1  # the other hint
    assert {(run["total_steps"], run["policy"], run["policy_hash"]) for run in joint} == {
        (40, None, None),
        (40, policy.name, policy.card["sha256"]),
    }
    with pytest.raises(InputError, match=r"got 40 steps on .* and 60 steps on"):
        merge([first, evaluated(longer, ExpertsPart())])
    with pytest.raises(InputError, match=f"same policy '{policy.name}' in all results, got"):
        merge([first, evaluated(tiny_task, PolicyPart(other))])


def test_report_of_folders_and_files(tmp_path):
    for name, part in (("one", ONE), ("two", TWO)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(part))
    paths = (tmp_path / "one", tmp_path / "two" / "results.json")

    page = report(ReportSettings(results=paths, output=tmp_path / "joint"))

    assert page.name == "report.html"
    assert len(json.loads((tmp_path / "joint" / "results.json").read_text())["runs"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "Expected results of lrenv evaluate"),
        ({"data": {"name": "digits"}}, "Expected results of lrenv evaluate"),
        ({"runs": {}}, "Expected results of lrenv evaluate"),
        ({"runs": [{"task": "a"}]}, r"Expected runs as this version .*missing 11 required"),
        (
            {"runs": [ONE["runs"][0] | {"later": 1}]},
            r"as this version of lrenv records them in .*results.json, got: .*'later'; use the",
        ),
    ],
)
def test_results_that_cannot_be_joined(tmp_path, change, message):
    (tmp_path / "results.json").write_text(json.dumps(ONE | change))
    with pytest.raises(InputError, match=message):
        report(ReportSettings(results=(tmp_path,), output=tmp_path / "joint"))


def test_something_else_than_results(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="Expected results of lrenv evaluate"):
        report(ReportSettings(results=(tmp_path,), output=tmp_path / "joint"))
    with pytest.raises(InputError, match=r"at .*none, got: no such file; name"):
        report(ReportSettings(results=(tmp_path / "none",), output=tmp_path / "joint"))
