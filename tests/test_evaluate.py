"""Summaries of an evaluation against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy
from lrenv.policies.network import Head
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.training import evaluate
from lrenv.training.evaluate import compare_all, usual_peak
from lrenv.training.records import RunRecord, bootstrap_interval, summarise


def record(ratio: float | None) -> RunRecord:
    val = None if ratio is None else 0.5 * ratio
    return RunRecord("t", "m", "", 0, ratio, val, val, 0.9, 1.0, ratio is None, 1.0, None)


def test_summary_by_hand() -> None:
    row = summarise("m", [record(r) for r in (0.5, 1.0, 4.0)])
    assert row["median_ratio"] == 1.0
    assert row["geometric_mean_ratio"] == pytest.approx(2 ** (1 / 3))
    assert row["worst_ratio"] == 4.0
    assert row["wins"] == pytest.approx(1 / 3)
    assert row["diverged"] == 0
    assert row["val_loss"] == pytest.approx(0.5 * 5.5 / 3)


def test_a_diverged_run_counts_as_infinite() -> None:
    row = summarise("m", [record(1.0), record(1.0), record(None)])
    assert row["median_ratio"] == 1.0
    assert row["worst_ratio"] is None
    assert row["geometric_mean_ratio"] is None
    assert row["diverged"] == 1
    assert row["val_loss"] is None


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    generator = torch.Generator().manual_seed(1)
    logs = 0.1 * torch.randn(400, 1, generator=generator).double()
    low, high = bootstrap_interval(logs)
    assert low < math.exp(float(logs.mean())) < high
    # normal theory: ±1.96 * 0.1 / sqrt(400)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_bootstrap_does_not_take_seeds_for_tasks() -> None:
    logs = torch.randn(20, 1, generator=torch.Generator().manual_seed(1)).double()
    assert bootstrap_interval(logs.expand(20, 3)) == pytest.approx(bootstrap_interval(logs))
    # one task: seeds alone are drawn, whose means lie between the least and the greatest
    low, high = bootstrap_interval(torch.tensor([[0.0, 1.0]]))
    assert (low, high) == pytest.approx((1.0, math.e))


def test_a_summary_draws_tasks_and_seeds_and_averages_hints() -> None:
    ratios = {
        ("a", 0): (1.0, 4.0),
        ("a", 1): (2.0, 2.0),
        ("b", 0): (8.0, 2.0),
        ("b", 1): (4.0, 4.0),
    }
    rows = [
        replace(record(ratio), task=task, seed=seed)
        for (task, seed), hints in ratios.items()
        for ratio in hints
    ]
    row = summarise("m", rows)
    expected = bootstrap_interval(torch.tensor([[2.0, 2.0], [4.0, 4.0]]).log())
    assert (row["low"], row["high"]) == pytest.approx(expected, rel=1e-5)
    assert (row["low"], row["high"]) == pytest.approx((2.0, 4.0), rel=1e-5)


@pytest.fixture
def policy() -> FrozenPolicy:
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES))
    return FrozenPolicy(actor, {"name": "random", "preset": "scale-free", "sha256": "a"})


def test_what_was_compared_is_not_run_again(
    policy: FrozenPolicy, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [("tiny", tiny_task), ("tiny", replace(tiny_task, seed=4))]
    first = compare_all(jobs, [policy], [0.1, 0.01], None, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(evaluate, "compare", refuse)
    assert compare_all(jobs, [policy], [0.1, 0.01], None, tmp_path) == first
    assert {record.seed for record in first} == {3, 4}
    assert sum(record.method == "learned: random" for record in first) == 4
    other = FrozenPolicy(policy.actor, {**policy.card, "sha256": "b"})
    for policies, hints, peak in (
        ([other], [0.1, 0.01], None),
        ([policy], [0.1], None),
        ([policy], [0.1, 0.01], 0.3),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            compare_all(jobs, policies, hints, peak, tmp_path)


def test_policies_of_one_name_are_refused(
    policy: FrozenPolicy, tiny_task: Task, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="policies of different names, got random, random; comp"):
        compare_all([("tiny", tiny_task)], [policy, policy], [0.1], None, tmp_path)


def test_usual_peaks() -> None:
    peaks = [usual_peak(OptimizerSpec(*spec)) for spec in (("adam",), ("sgd", 0.9), ("sgd", 0.0))]
    assert peaks == [1e-3, 1e-2, 1e-1]
