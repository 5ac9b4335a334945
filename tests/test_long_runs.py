"""Comparisons of runs that take minutes: the grid, the repeated seeds, the restart."""

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import save_policy
from lrenv.policies.network import Head
from lrenv.trainees.tasks import load_data

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import long_runs
from long_runs import LongRunsSettings, compare_long_runs

CARD = {"preset": "scale-free", "made_by": "a test", "training_families": "none"}


@pytest.fixture
def settings(tmp_path: Path) -> LongRunsSettings:
    torch.manual_seed(0)
    path = save_policy(tmp_path, "random", Head("scale-free", len(FEATURES)), CARD)
    return LongRunsSettings(
        tmp_path / "out",
        total_steps=40,
        kinds=("constant", "cosine"),
        peaks=(1e-4, 0.1),
        policies=(str(path),),
    )


def measure(trainee) -> dict[str, float]:
    return {"test_loss": float(trainee.evaluate("test")[0])}


def test_the_best_expert_of_the_grid_is_repeated(tiny_task, settings):
    results = json.loads(compare_long_runs(tiny_task, settings, measure).read_text())

    runs = results["runs"]
    rows = [(r["method"].split(":")[0], r["peak"], r["seed"]) for r in runs]
    matched = [pytest.approx(sum(r["lrs"]) / 40, rel=1e-4) for r in runs[:2]]
    assert rows[:8] == [
        ("learned", None, 0),
        ("learned", None, 1),
        ("constant, default peak", 1e-4, 0),
        ("cosine, default peak", 1e-4, 0),
        ("constant, tuned peak", 0.1, 0),
        ("cosine, tuned peak", 0.1, 0),
        ("LR-matched constant", matched[0], 0),
        ("LR-matched constant", matched[1], 1),
    ]
    best = min(results["grid"], key=lambda r: r["val_loss"])
    assert rows[8:] == [(f"{best['driver']}, tuned peak", 0.1, 1)]
    assert results["tuning_runs"] == 4
    assert results["data"]["name"] == load_data(tiny_task.data).name
    assert all(r["val_loss_half"] > 0 and r["test_loss"] > 0 for r in runs)


def test_settings_without_runs_are_refused(tiny_task, settings):
    for change in ({"seeds": 0}, {"kinds": ()}, {"peaks": ()}, {"policies": ()}):
        empty = LongRunsSettings(**vars(settings) | change)
        with pytest.raises(InputError, match="at least one seed, expert, peak and policy, got"):
            compare_long_runs(tiny_task, empty, measure)


def test_what_was_run_is_not_run_again(tiny_task, settings, monkeypatch):
    first = compare_long_runs(tiny_task, settings, measure).read_text()
    monkeypatch.setattr(long_runs, "build_trainee", None)

    assert compare_long_runs(tiny_task, settings, measure).read_text() == first


def test_names_are_printed_as_they_are(tiny_task, settings, monkeypatch, tmp_path):
    printed = StringIO()
    monkeypatch.setattr(long_runs, "console", Console(file=printed, width=400))
    card = save_policy(tmp_path / "[draft]", "random", Head("scale-free", len(FEATURES)), CARD)
    changed = {"policies": (str(card),), "seeds": 1, "kinds": ("cosine",), "peaks": (0.1,)}
    compare_long_runs(tiny_task, replace(settings, **changed), measure)

    assert f"learned: {card}" in printed.getvalue()


def test_all_experts_run_on_all_seeds_where_asked(tiny_task, settings):
    settings = LongRunsSettings(**vars(settings) | {"all_seeds": True})
    rows = json.loads(compare_long_runs(tiny_task, settings, measure).read_text())["runs"]

    seeds = {}
    for row in rows:
        seeds.setdefault(row["method"], []).append(row["seed"])
    assert all(found == [0, 1] for found in seeds.values())
    assert len(seeds) == 6
