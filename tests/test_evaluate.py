"""Summaries of an evaluation against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lrenv.trainees.mlp import OptimizerSpec
from lrenv.training.evaluate import RunRecord, bootstrap_interval, summarise, usual_peak


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
    logs = 0.1 * torch.randn(400, generator=generator).double()
    low, high = bootstrap_interval(logs)
    assert low < math.exp(float(logs.mean())) < high
    # normal theory: ±1.96 * 0.1 / sqrt(400)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_usual_peaks() -> None:
    peaks = [usual_peak(OptimizerSpec(*spec)) for spec in (("adam",), ("sgd", 0.9), ("sgd", 0.0))]
    assert peaks == [1e-3, 1e-2, 1e-1]
