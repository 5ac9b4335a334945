"""What the means of a summary are over."""

from __future__ import annotations

import pytest
import torch

from lrenv.training.records import TUNED, RunRecord, summaries, summarise


def record(task: str, seed: int, ratio: float, method: str = "m") -> RunRecord:
    finals = (ratio, ratio, ratio)
    return RunRecord(task, method, "", seed, *finals, None, 1.0, 1.0, False, None)


def test_means_are_over_tasks_as_their_interval_is() -> None:
    rows = [record("a", 0, 8.0), *(record("b", seed, 1.0) for seed in range(3))]
    tuned = [record(row.task, row.seed, 1.0, TUNED) for row in rows]
    row = summaries([*rows, *tuned])[0]

    assert row["geometric_mean_ratio"] == pytest.approx(8**0.5)  # over runs it was 8 ** 0.25
    assert row["test_ratio"] == pytest.approx(8**0.5)
    assert row["low"] < row["geometric_mean_ratio"] < row["high"]


def test_with_as_many_seeds_everywhere_they_are_those_over_runs() -> None:
    ratios = [0.5, 0.7, 1.3, 2.9, 1.1, 0.93]
    row = summarise("m", [record("abc"[i // 2], i % 2, r) for i, r in enumerate(ratios)])

    over_runs = torch.tensor(ratios).double().log().mean().exp()
    assert row["geometric_mean_ratio"] == pytest.approx(float(over_runs), rel=1e-14)
