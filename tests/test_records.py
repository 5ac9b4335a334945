"""Records and their summaries against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lrenv.training.records import (
    MATCHED,
    TUNED,
    RunRecord,
    bootstrap_interval,
    make_record,
    summaries,
    summarise,
    tuned_test_losses,
)

LOSSES = (0.2, 0.001, 0.5, None)


def record(ratio: float | None, task: str = "t", seed: int = 0, method: str = "m") -> RunRecord:
    val = None if ratio is None else 0.5 * ratio
    finals = (ratio, val, val, 0.9)
    return RunRecord(task, method, "", seed, *finals, 0.5, 1.0, ratio is None, 1.0, None)


def test_summary_by_hand() -> None:
    row = summarise("m", [record(r) for r in (0.5, 1.0, 4.0)])
    assert row["median_ratio"] == 1.0
    assert row["geometric_mean_ratio"] == pytest.approx(2 ** (1 / 3))
    assert row["worst_ratio"] == 4.0
    assert row["wins"] == pytest.approx(1 / 3)
    assert row["diverged"] == 0
    assert row["val_loss"] == pytest.approx(0.5 * 5.5 / 3)


def test_one_run_has_no_interval_and_a_matched_constant_cost_one() -> None:
    row = summarise(f"{MATCHED}: learned", [record(1.2)])
    assert (row["low"], row["high"], row["tuning_runs"]) == (None, None, 1)
    assert summarise("learned", [record(1.2), record(1.1)])["low"] is not None


def test_a_diverged_run_counts_as_infinite() -> None:
    row = summarise("m", [record(1.0), record(1.0), record(None)])
    assert row["median_ratio"] == 1.0
    assert row["worst_ratio"] is None
    assert row["geometric_mean_ratio"] is None
    assert row["diverged"] == 1
    assert row["val_loss"] is None


def test_the_ratio_of_test_losses_by_hand() -> None:
    tuned = [replace(record(1.0), method=TUNED, seed=k, test_loss=x) for k, x in enumerate(LOSSES)]
    references = tuned_test_losses([*tuned, record(1.0)])
    assert references == {("t", 0): 0.2, ("t", 1): 0.001, ("t", 2): 0.5}
    rows = [replace(record(1.0), seed=k, test_loss=x) for k, x in enumerate((0.4, 0.005, 1.0))]

    def ratio(*rows: RunRecord) -> float | None:
        return summarise("m", rows, references)["test_ratio"]

    assert ratio(rows[0]) == pytest.approx(2.0)
    assert ratio(rows[1]) == pytest.approx(1.0)  # both below the floor of 0.01
    assert ratio(replace(rows[1], test_loss=0.03)) == pytest.approx(3.0)
    assert ratio(*rows) == pytest.approx(4 ** (1 / 3))
    assert summarise("m", rows, references)["median_test_ratio"] == pytest.approx(2.0)
    assert ratio(replace(rows[0], diverged=True)) == pytest.approx(math.e**2)
    assert ratio(replace(rows[0], diverged=True), rows[0]) == pytest.approx(math.e * 2**0.5)
    assert ratio(replace(rows[0], test_loss=1e6)) == pytest.approx(math.e**2)
    assert ratio(rows[0], replace(rows[0], seed=3)) is None  # whose tuned expert has no test loss
    assert summarise("m", rows)["test_ratio"] is None
    assert summarise("m", rows)["median_test_ratio"] is None


def test_means_of_utility_are_over_runs_that_classify() -> None:
    known = replace(record(1.0), top5=0.5, confidence=0.7, cdac=0.1, loss_gap=0.2)
    other = replace(known, test_accuracy=0.7, top5=1.0, confidence=0.9, cdac=0.3, loss_gap=0.4)
    regression = replace(record(1.0), test_accuracy=None, loss_gap=0.6)
    row = summarise("m", [known, other, regression])
    assert [row[k] for k in ("top1", "top5", "confidence", "cdac", "loss_gap")] == pytest.approx(
        [0.8, 0.75, 0.8, 0.2, 0.4]
    )
    assert row["confidence_std"] is None
    without = summarise("m", [regression])
    assert [without[k] for k in ("top1", "top5", "confidence", "cdac")] == [None] * 4
    diverged = summarise("m", [known, replace(known, diverged=True, top5=None)])
    assert diverged["top1"] is None
    assert diverged["top5"] is None


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    generator = torch.Generator().manual_seed(1)
    logs = 0.1 * torch.randn(400, 1, generator=generator).double()
    low, high = bootstrap_interval(logs.tolist())
    assert low < math.exp(float(logs.mean())) < high
    # normal theory: ±1.96 * 0.1 / sqrt(400)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_bootstrap_does_not_take_seeds_for_tasks() -> None:
    logs = torch.randn(20, 1, generator=torch.Generator().manual_seed(1)).double()
    assert bootstrap_interval(logs.expand(20, 3).tolist()) == pytest.approx(
        bootstrap_interval(logs.tolist())
    )
    # one task: seeds alone are drawn, whose means lie between the least and the greatest
    low, high = bootstrap_interval([[0.0, 1.0]])
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
    expected = bootstrap_interval(torch.tensor([[2.0, 2.0], [4.0, 4.0]]).log().tolist())
    assert (row["low"], row["high"]) == pytest.approx(expected, rel=1e-5)
    assert (row["low"], row["high"]) == pytest.approx((2.0, 4.0), rel=1e-5)


def test_the_time_to_the_tuned_expert_by_hand() -> None:
    curves = [[1.0, 0.5, 0.4, 0.45], [1.0, 0.6, 0.55, 0.51], [1.0, None, None, None], None]
    ratios = (0.9, 1.02, None, 1.0)  # the tuned expert ends at 0.5
    rows = [replace(record(r), val_curve=c) for r, c in zip(ratios, curves, strict=True)]

    assert [row.time_to_tuned for row in rows] == [0.5, math.inf, math.inf, None]
    assert summarise("m", rows)["median_time"] is None
    assert summarise("m", rows)["reached"] == pytest.approx(1 / 3)
    assert summarise("m", [rows[0], rows[0], rows[1]])["median_time"] == 0.5
    assert summarise("m", [rows[3]])["reached"] is None
    lost = replace(rows[0], val_curve=[0.7, 0.5, 0.4], val_steps=[5, 10, 15], total_steps=100)
    assert lost.time_to_tuned == 0.1


def test_the_cost_to_the_tuned_expert_by_hand() -> None:
    row = replace(record(0.9), val_curve=[1.0, 0.6, 0.5, 0.4], val_steps=[3, 6, 9, 12])
    timed = replace(row, val_seconds=[0.1, 0.25, 0.5, 0.75])
    never = replace(timed, val_curve=[1.0, None, 0.6, 0.51])

    assert (row.steps_to_tuned, row.seconds_to_tuned) == (9.0, None)
    assert (timed.steps_to_tuned, timed.seconds_to_tuned) == (9.0, 0.5)
    assert (never.steps_to_tuned, never.seconds_to_tuned) == (math.inf, math.inf)
    assert record(1.0).steps_to_tuned is None
    quick = replace(timed, val_curve=[0.5, 0.4, 0.4, 0.4])
    summary = summarise("m", [quick, timed, never])
    assert (summary["median_steps"], summary["median_seconds"]) == (9.0, 0.5)
    assert summarise("m", [never])["median_steps"] is None
    assert summarise("m", [row])["median_seconds"] is None


def test_losses_below_the_floor_are_alike() -> None:
    def ratio(val: float, reference: float) -> float | None:
        history = (torch.ones(3), torch.ones(3))
        return make_record(("t", "m", "", 0), reference, [val, 1.0, 1.0], history).ratio

    assert ratio(1e-6, 1e-9) == 1.0
    assert ratio(0.02, 0.0) == pytest.approx(2.0)
    assert ratio(1e-6, 0.02) == pytest.approx(0.5)
    assert ratio(0.3, 0.2) == pytest.approx(1.5)
    row = make_record(("t", "m", "", 0), 0.0, [0.0] * 3, (torch.ones(3),) * 2, None, [1.0, 0.01])
    assert row.time_to_tuned == 1.0


def test_the_area_of_the_profile_by_hand() -> None:
    row = summarise("m", [record(r) for r in (0.5, 1.25, 3.0, None)])
    assert row["profile_area"] == pytest.approx((1 + 0.75) / 4)


def test_means_are_over_tasks_as_their_interval_is() -> None:
    rows = [record(4.0, "a"), *(record(1.0, "b", seed) for seed in range(3))]
    tuned = [record(1.0, row.task, row.seed, TUNED) for row in rows]
    row = summaries([*rows, *tuned])[0]

    assert row["geometric_mean_ratio"] == pytest.approx(4**0.5)  # over runs it was 4 ** 0.25
    assert row["test_ratio"] == pytest.approx(4**0.5)
    assert row["low"] < row["geometric_mean_ratio"] < row["high"]


def test_with_as_many_seeds_everywhere_they_are_those_over_runs() -> None:
    ratios = [0.5, 0.7, 1.3, 2.9, 1.1, 0.93]
    row = summarise("m", [record(r, "abc"[i // 2], i % 2) for i, r in enumerate(ratios)])

    over_runs = torch.tensor(ratios).double().log().mean().exp()
    assert row["geometric_mean_ratio"] == pytest.approx(float(over_runs), rel=1e-14)
