"""The general policy's recipe: a tiny run that is killed twice and goes on each time."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrenv.errors import InputError, LrenvError
from lrenv.policies.frozen import build_actor, load_policy, save_policy
from lrenv.trainees import families
from lrenv.trainees.families import HELD_OUT_NUMBERS, training_numbers, training_task
from lrenv.trainees.tasks import Task
from lrenv.training import generalist
from lrenv.training.generalist import (
    EXPORT_NAME,
    ppo_tasks,
    selection_tasks,
    summary,
    train_generalist,
)
from lrenv.training.outcome_ppo import OutcomePPO
from lrenv.training.runfolder import read_state
from lrenv.training.settings import GeneralistSettings

UPDATES = 8
TASKS = 22
SETTINGS = GeneralistSettings(
    family="mixed",
    tasks=TASKS,
    held_out=2,
    selection=3,
    group=2,
    rounds=2,
    clone_steps=6,
    last_clone_steps=6,
    clone_batch=4,
    groups_per_update=2,
    critic_warmup=1,
    evaluate_every=3,
    epochs=1,
    updates=UPDATES,
)
SUMMARY = {
    "geometric_mean": 1.4142,
    "median": 1.4142,
    "worst_finite": 4.0,
    "wins": 0.25,
    "diverged": 0,
}


def short_task(index: int, family: str) -> Task:
    """A training task of 5 to 20 steps."""
    task = training_task(index, family)
    return replace(task, spec=replace(task.spec, total_steps=5 + index % 16))


def train(folder: Path) -> None:
    """Train on tasks of 5 to 20 steps, and write a line for each PPO update."""
    update = OutcomePPO.update

    def logged(ppo: OutcomePPO, tasks: list[Task], left: float) -> float:
        assert 0.9 < left <= 1.0
        with folder.with_suffix(".log").open("a") as log:
            print(ppo.updates, file=log)
        # The share of the budget that is left depends on the clock; this one does not.
        return update(ppo, tasks, 1.0 - ppo.updates / UPDATES)

    with pytest.MonkeyPatch.context() as patch:
        for module in (families, generalist):
            patch.setattr(module, "training_task", short_task)
        patch.setattr(OutcomePPO, "update", logged)
        train_generalist(replace(SETTINGS, output=folder))


def kill_when(folder: Path, ready: Callable[[], bool]) -> None:
    """Train in a process of its own, and kill it as soon as something holds."""
    code = "import runpy, sys; from pathlib import Path; "
    code += "runpy.run_path(sys.argv[1])['train'](Path(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, __file__, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing to kill"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def updates_taken(folder: Path) -> list[int]:
    log = folder.with_suffix(".log")
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that was killed while it demonstrated and while it learned, and one that was not."""
    root = tmp_path_factory.mktemp("generalist")
    killed, whole, seen = root / "killed", root / "whole", {}
    kill_when(killed, lambda: times(killed, "demonstrations/round0-0.safetensors") != {})
    seen["demonstrations"] = times(killed, "demonstrations/*.safetensors")
    kill_when(killed, lambda: len(updates_taken(killed)) >= 7)
    seen["second"] = updates_taken(killed)
    seen["saved"] = read_state(killed / "ppo.pt")["updates"]
    seen["cloned"] = times(killed, "*/*.safetensors") | times(killed, "clone-*.pt")
    train(killed)
    train(whole)
    return killed, whole, seen


def test_demonstrations_are_not_made_twice(runs):
    killed, _, seen = runs

    assert "round0-0.safetensors" in seen["demonstrations"]
    assert "round1-0.safetensors" not in seen["demonstrations"]
    now = times(killed, "demonstrations/*.safetensors")
    assert seen["demonstrations"].items() <= now.items()
    assert set(now) == {f"round{i}-{j}.safetensors" for i in (0, 1) for j in (0, 20)}


def test_cloning_is_not_done_twice(runs):
    killed, _, seen = runs

    assert {"clone-round0.pt", "clone-round1.pt"} < set(seen["cloned"])
    now = times(killed, "*/*.safetensors") | times(killed, "clone-*.pt")
    assert now == seen["cloned"]


def test_updates_go_on_from_the_last_ones_saved(runs):
    killed, _, seen = runs

    assert seen["second"][:7] == list(range(7))
    assert seen["saved"] in (len(seen["second"]) - 1, len(seen["second"]))
    assert updates_taken(killed) == seen["second"] + list(range(seen["saved"], UPDATES))
    assert read_state(killed / "ppo.pt")["updates"] == UPDATES


def test_a_killed_run_ends_as_one_that_was_not(runs):
    killed, whole, _ = runs

    assert updates_taken(whole) == list(range(UPDATES))
    for name in (EXPORT_NAME, f"{EXPORT_NAME}-start"):
        expected, found = (load_file(f / f"{name}.safetensors") for f in (whole, killed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    last, resumed = (read_state(f / "ppo.pt")["actor"] for f in (whole, killed))
    assert all(torch.equal(last[key], resumed[key]) for key in last)
    cloned = load_file(whole / f"{EXPORT_NAME}-start.safetensors")
    assert not all(torch.equal(last[key], cloned[key]) for key in cloned)


def test_no_temporary_files_are_left_by_a_run_that_ended(runs):
    _, whole, _ = runs

    assert not [p for p in whole.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]


def test_the_export_is_a_policy_with_its_history(runs):
    killed, _, _ = runs
    policy = load_policy(killed / f"{EXPORT_NAME}.json")

    measured = policy.card["ratio_to_tuned_expert"]
    assert set(measured) == {"start", "ppo"}
    assert measured["start"].keys() == SUMMARY.keys() < measured["ppo"].keys()
    assert measured["ppo"]["updates"] == UPDATES
    selected, ratio = (
        measured["ppo"][name] for name in ("selected_update", "selection_ratio_to_start")
    )
    assert selected in (0, 3, 6, UPDATES)
    assert ratio <= 1.0 if selected else ratio == 1.0
    assert measured["ppo"]["hours"] == pytest.approx(
        read_state(killed / "ppo.pt")["spent"] / 3600, abs=1e-3
    )
    assert policy.card["settings"]["tasks"] == TASKS
    assert "output" not in policy.card["settings"]


def test_ppo_alone_starts_from_untrained_weights(tmp_path, monkeypatch):
    for module in (families, generalist):
        monkeypatch.setattr(module, "training_task", short_task)
    settings = replace(SETTINGS, rounds=0, updates=3, evaluate_every=1, output=tmp_path)

    card = load_policy(train_generalist(settings)).card

    assert card["settings"]["start"] is None
    assert card["ratio_to_tuned_expert"]["ppo"]["updates"] == 3
    assert not (tmp_path / "demonstrations").exists()
    untrained = read_state(tmp_path / "ppo.pt")["clone"]
    start = load_policy(tmp_path / "default-start.json").actor.state_dict()
    assert all(torch.equal(start[name], value) for name, value in untrained.items())


@pytest.mark.parametrize(
    ("changes", "selected"),
    [([-1.0], 2), ([-2.0, 0.2, 0.2, 0.2], 0), ([2.0, -0.2, -0.2, -0.2], 2)],
)
def test_the_last_state_of_ppo_is_exported_if_no_single_task_decides(
    tmp_path, monkeypatch, changes, selected
):
    for module in (families, generalist):
        monkeypatch.setattr(module, "training_task", short_task)
    monkeypatch.setattr(generalist, "log_changes", lambda *_: torch.tensor(changes))
    settings = replace(SETTINGS, rounds=0, updates=2, evaluate_every=3, output=tmp_path)

    card = load_policy(train_generalist(settings)).card

    assert card["ratio_to_tuned_expert"]["ppo"]["selected_update"] == selected


def test_other_settings_are_refused(runs):
    killed, _, _ = runs

    with pytest.raises(InputError, match="got seed=7 instead of 0; use another --output"):
        train_generalist(replace(SETTINGS, output=killed, seed=7))


@pytest.mark.parametrize(
    "settings",
    [
        {"groups_per_update": 0},
        {"held_out": 0},
        {"held_out": 501},
        {"selection": 0},
        {"selection": 501},
        {"seed": 19},
        {"tasks": 0},
        {"group": 0},
        {"rounds": -1},
        {"seed": -1},
        {"evaluate_every": 0},
        {"epochs": 0},
        {"clone_batch": 0},
    ],
    ids=[
        "no groups",
        "none held out",
        "too many held out",
        "none to select on",
        "too many to select on",
        "a seed whose tasks broad begins with",
        "no tasks",
        "no runs",
        "fewer rounds than none",
        "a seed whose tasks are held out",
        "no evaluations",
        "no passes",
        "no runs in a batch",
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(tmp_path, monkeypatch, settings):
    def reached(*_):
        raise AssertionError("work began")

    monkeypatch.setattr("lrenv.training.generalist.search_all", reached)
    monkeypatch.setattr("lrenv.training.generalist.clone", reached)

    with pytest.raises(InputError, match=f"Expected {next(reversed(settings))} of"):
        train_generalist(GeneralistSettings(output=tmp_path, **settings))


def test_an_unknown_family_is_refused_ahead_of_all(tmp_path):
    with pytest.raises(InputError, match="Expected a training family among"):
        train_generalist(GeneralistSettings(output=tmp_path / "run", family="plane"))
    assert not (tmp_path / "run").exists()


def test_every_update_of_ppo_draws_new_short_tasks(tmp_path):
    settings = GeneralistSettings(
        output=tmp_path, family="mixed", longest_run=300, groups_per_update=8
    )
    first, later = (list(islice(ppo_tasks(settings, n), 20)) for n in (0, 2))

    assert first[16:] == later[:4]  # 8 tasks an update
    assert len({task.key() for task in first + later}) == 36
    assert max(task.spec.total_steps for task in first + later) <= 300
    other = next(ppo_tasks(replace(settings, seed=1), 0))
    assert other.key() not in {task.key() for task in first + later}
    with pytest.raises(
        InputError, match=r"Expected 96 tasks of at most 9 steps to select on, got 0"
    ):
        train_generalist(replace(settings, longest_run=9))


def test_what_selects_is_short_and_neither_measures_nor_trains(tmp_path):
    settings = GeneralistSettings(
        output=tmp_path, family="broad", longest_run=300, selection=40, groups_per_update=8
    )
    selecting = selection_tasks(settings)
    others = [training_task(i, "broad") for i in (*training_numbers(720), *HELD_OUT_NUMBERS[:500])]
    others += islice(ppo_tasks(settings, 0), 400)

    assert len(selecting) == 40
    assert max(task.spec.total_steps for task in selecting) <= 300
    assert not {task.key() for task in selecting} & {task.key() for task in others}


def test_a_refused_start_does_not_bind_the_folder(tmp_path):
    refused = (
        ({"start": "nope"}, "policy among"),
        ({"hidden": ("nope",)}, "hidden features"),
        ({"longest_run": 9}, "tasks of at most 9 steps"),
        ({"longest_demonstration": 1}, "tasks of at most 1 steps"),
    )
    for settings, message in refused:
        with pytest.raises(LrenvError, match=message):
            train_generalist(replace(SETTINGS, output=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_another_policy_at_the_path_of_the_start_is_refused(tmp_path, monkeypatch):
    for module in (families, generalist):
        monkeypatch.setattr(module, "training_task", short_task)
    save_policy(tmp_path, "start", build_actor(), {"preset": "scale-free"})
    settings = replace(SETTINGS, rounds=0, start=str(tmp_path / "start.json"), hours=0)
    train_generalist(replace(settings, output=tmp_path / "run"))
    save_policy(tmp_path, "start", build_actor(), {"preset": "scale-free"})

    with pytest.raises(InputError, match="got start_sha256="):
        train_generalist(replace(settings, output=tmp_path / "run"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"folder that can be written, got .*file"):
        train_generalist(GeneralistSettings(output=tmp_path / "file"))


def test_a_summary_by_hand():
    ratios = torch.tensor([[0.5, 2.0], [1.0, 4.0]]).log()

    assert summary(ratios) == SUMMARY


def test_a_summary_counts_diverged_runs():
    ratios = torch.tensor([[0.5, 2.0], [1.0, math.inf]]).log()

    assert summary(ratios) == {
        "geometric_mean": 1.6487,  # (e^2)^(1/4)
        "median": 1.4142,
        "worst_finite": 2.0,
        "wins": 0.25,
        "diverged": 1,
    }
    assert summary(ratios[1:, 1:])["worst_finite"] == math.inf
