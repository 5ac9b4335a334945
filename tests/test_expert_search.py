"""The tuned expert: the grid, its cache and the schedule cloned from it."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lrenv.errors import InputError
from lrenv.policies.experts import schedule
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.training import expert_search
from lrenv.training.expert_search import (
    ScheduledRuns,
    SearchResult,
    expert_cache,
    peak_grid,
    run_schedules,
    search_experts,
)


def result(*runs: tuple[str, float, float]) -> SearchResult:
    kinds, peaks, losses = zip(*runs, strict=True)
    return SearchResult(kinds, peaks, losses, losses)


def logs(kind: str, peak: float, steps: int = 50) -> torch.Tensor:
    return torch.tensor(schedule(kind, steps, peak), dtype=torch.float64).log().float()


def finished(val_loss: torch.Tensor, losses: torch.Tensor) -> ScheduledRuns:
    """Runs of known validation losses, ``(r,)``."""
    trainee = SimpleNamespace(evaluate=lambda split: (val_loss, torch.zeros_like(val_loss)))
    return ScheduledRuns(trainee, losses, torch.empty(len(losses), 0))


@pytest.mark.parametrize(
    ("optimizer", "lowest"),
    [
        (OptimizerSpec("sgd", 0.0), 1e-3),
        (OptimizerSpec("sgd", 0.9), 1e-4),
        (OptimizerSpec("adam"), 1e-5),
        (OptimizerSpec("adamw"), 1e-5),
    ],
)
def test_peaks_span_four_decades(optimizer, lowest):
    peaks = peak_grid(optimizer)

    assert peaks == pytest.approx([lowest * 10 ** (k / 3) for k in range(13)])
    assert peaks[-1] == pytest.approx(1e4 * lowest)


def test_runs_follow_their_schedules(tiny_task):
    total = tiny_task.spec.total_steps
    rates = [schedule("linear", total, 0.1), schedule("cosine", total, 0.02)]

    runs = run_schedules(tiny_task, rates)

    assert runs.losses.shape == (2, total)
    val_loss, _ = runs.trainee.evaluate("val")
    watched = run_schedules(tiny_task, rates, watch=(7, total)).watched
    shorter = replace(tiny_task, spec=replace(tiny_task.spec, total_steps=7))
    cut = run_schedules(shorter, [lrs[:7] for lrs in rates]).trainee.evaluate("val")[0]
    torch.testing.assert_close(watched, torch.stack([cut, val_loss], 1), rtol=1e-4, atol=0.0)

    for run, lrs in enumerate(rates):
        trainee = SingleTrainee(tiny_task.spec, load_data(tiny_task.data), tiny_task.seed)
        losses = []
        for lr in lrs:
            losses.append(trainee.backward().item())
            trainee.update(torch.tensor([lr]))
        assert runs.losses[run].tolist() == pytest.approx(losses, rel=1e-4)
        assert val_loss[run].item() == pytest.approx(trainee.evaluate("val")[0].item(), rel=1e-4)


def test_the_grid_holds_every_expert_at_every_peak(tiny_task, tmp_path):
    found = search_experts(tiny_task, tmp_path)

    assert len(set(zip(found.kinds, found.peaks, strict=True))) == 3 * 13
    assert set(found.kinds) == {"linear", "cosine", "polynomial"}
    assert set(found.peaks) == set(peak_grid(tiny_task.spec.optimizer))
    assert found.reference == min(found.val_loss) == found.val_loss[found.best]
    assert found.reference < 0.9 * max(found.val_loss)


def test_the_best_run_is_the_best(tiny_task, tmp_path):
    found = search_experts(tiny_task, tmp_path)
    best = schedule(found.kinds[found.best], tiny_task.spec.total_steps, found.peaks[found.best])

    runs = run_schedules(tiny_task, [best])
    assert runs.trainee.evaluate("val")[0].item() == pytest.approx(found.reference, rel=1e-3)


def test_a_search_in_parts_goes_on_where_it_was_stopped(tiny_task, tmp_path, monkeypatch):
    whole = search_experts(tiny_task, tmp_path / "whole")
    monkeypatch.setattr(type(tiny_task.spec), "lockstep", 5)
    calls = []

    def stops(task, rates):
        calls.append(len(rates))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_schedules(task, rates)

    monkeypatch.setattr(expert_search, "run_schedules", stops)
    with pytest.raises(KeyboardInterrupt):
        search_experts(tiny_task, tmp_path)
    parts = search_experts(tiny_task, tmp_path)

    assert calls == [5, 5, 5, 5, 5, 5, 5, 5, 4]
    assert parts.val_loss == pytest.approx(whole.val_loss, rel=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [
        f"{tiny_task.key()}.json"
    ]


def test_a_second_search_reads_the_cache(tiny_task, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    first = search_experts(tiny_task, tmp_path)
    monkeypatch.setattr(expert_search, "run_schedules", refuse)

    assert search_experts(tiny_task, tmp_path) == first
    with pytest.raises(AssertionError, match="trained again"):
        search_experts(replace(tiny_task, seed=4), tmp_path)


def test_the_cache_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LRENV_CACHE", str(tmp_path))
    assert expert_cache() == tmp_path / "experts"

    monkeypatch.delenv("LRENV_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expert_cache() == tmp_path / ".cache/lrenv/experts"


def search_or_error(task: Task, cache) -> SearchResult | str:
    try:
        return search_experts(task, cache)
    except InputError as error:
        return str(error)


LISTS = ("kinds", "peaks", "val_loss", "train_loss")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"format": 1}',
        lambda text: json.dumps({"format": 1, "task": {}} | {key: [] for key in LISTS}),
        lambda text: text.replace('"format": 1', '"format": 0'),
    ],
    ids=["empty", "half", "list", "bare", "no runs", "old"],
)
def test_a_damaged_cache_is_named_or_made_anew(tiny_task, tmp_path, damage):
    first = search_experts(tiny_task, tmp_path)
    path = tmp_path / f"{tiny_task.key()}.json"
    path.write_text(damage(path.read_text()))

    again = search_or_error(tiny_task, tmp_path)

    assert again == first or (isinstance(again, str) and str(path) in again)


def test_diverged_runs_are_infinite_and_pass_through_the_cache(tiny_task, tmp_path, monkeypatch):
    losses, val = torch.ones(39, 2), torch.linspace(2.0, 1.0, 39)
    losses[5, 1], val[5], val[6] = math.nan, math.nan, math.inf
    monkeypatch.setattr(expert_search, "run_schedules", lambda *_: finished(val, losses))

    first, again = (search_experts(tiny_task, tmp_path) for _ in range(2))

    assert first.val_loss[5] == first.val_loss[6] == first.train_loss[5] == math.inf
    assert first.best == 38
    assert again == first


def test_a_task_on_which_all_experts_diverge_is_refused(tiny_task, tmp_path, monkeypatch):
    bad = torch.full((39,), math.nan)
    outcome = finished(bad, bad[:, None])
    monkeypatch.setattr(expert_search, "run_schedules", lambda *_: outcome)

    with pytest.raises(InputError, match="but all of them diverged; check the data"):
        search_experts(tiny_task, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_schedule_of_a_clear_winner_is_its_own():
    found = result(("cosine", 0.1, 1.0), ("linear", 0.3, 2.0), ("linear", 0.9, math.inf))

    expected = logs("cosine", 0.1).clamp_min(math.log(1e-4))
    torch.testing.assert_close(found.log_schedule(50), expected, rtol=0, atol=1e-5)


def test_experts_are_averaged_by_their_losses():
    """A loss worse by the sharpness weighs e times less, one worse by five times is left out."""
    losses = [math.exp(0.02 * k) for k in (0, 1, 5)]
    found = result(*zip(["linear", "polynomial", "cosine"], [0.1, 0.5, 9.0], losses, strict=True))

    weights = [math.e / (1 + math.e), 1 / (1 + math.e)]
    expected = weights[0] * logs("linear", 0.1) + weights[1] * logs("polynomial", 0.5).clamp_min(
        math.log(5e-4)
    )
    torch.testing.assert_close(found.log_schedule(50), expected, rtol=0, atol=1e-5)


def test_the_schedule_lies_between_those_averaged(tiny_task, tmp_path):
    found, total = search_experts(tiny_task, tmp_path), tiny_task.spec.total_steps
    near = [
        logs(kind, peak, total)
        for kind, peak, loss in zip(found.kinds, found.peaks, found.val_loss, strict=True)
        if loss < found.reference * math.exp(0.02 * math.log(100))
    ]

    averaged = found.log_schedule(total)

    assert averaged.shape == (total,)
    assert (averaged >= torch.stack(near).amin(0) - 1e-4).all()
    assert (averaged <= torch.stack(near).amax(0) + 1e-4).all()
