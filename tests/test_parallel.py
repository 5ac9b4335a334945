"""Searches, rollouts and evaluations side by side: same results, whatever happens to a worker."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from lrenv.errors import InputError, ResourceError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy
from lrenv.policies.network import Head
from lrenv.trainees import families
from lrenv.trainees.families import training_task
from lrenv.training import cli, clone, expert_search, generalist, outcome_ppo, parallel
from lrenv.training.compare import ExpertsPart, PolicyPart
from lrenv.training.evaluate import compare_all
from lrenv.training.expert_search import expert_cache, search_all
from lrenv.training.outcome_ppo import OutcomePPO, evaluate_actor
from lrenv.training.parallel import IN_PROCESS, Workers
from lrenv.training.runfolder import read_state
from lrenv.training.settings import GeneralistSettings

pytestmark = pytest.mark.xdist_group("ray")

SETTINGS = GeneralistSettings(
    tasks=3, group=4, groups_per_update=3, rounds=2, critic_warmup=0, epochs=1
)


@pytest.fixture(scope="module")
def two():
    """Two workers of Ray."""
    with Workers(2) as workers:
        yield workers


@pytest.fixture
def tasks(tiny_task):
    return [replace(tiny_task, seed=seed) for seed in range(3)]


def new_actor() -> Head:
    torch.manual_seed(0)
    return Head("scale-free", len(FEATURES))


def dies_once(function: Callable[..., Any], marker: Path) -> Callable[..., Any]:
    """The function; but the worker that calls it first is killed in the middle of the call."""

    def dying(*args: object) -> Any:
        with suppress(FileExistsError):
            marker.touch(exist_ok=False)
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
            function(*args)
            time.sleep(60)
        return function(*args)

    return dying


def search(workers: Workers, tasks, folder, monkeypatch) -> object:
    shutil.rmtree(expert_cache(), ignore_errors=True)
    found = search_all(tasks, workers)
    assert len(list(expert_cache().iterdir())) == len(tasks)
    return found


def demonstrate(workers: Workers, tasks, folder, monkeypatch) -> object:
    monkeypatch.setattr(families, "training_task", lambda index, family: tasks[index])
    found = clone.collect(folder, 1, new_actor(), SETTINGS, workers)
    return [part.tolist() for part in vars(found).values()]


def update(workers: Workers, tasks, folder, monkeypatch) -> object:
    ppo = OutcomePPO(new_actor(), SETTINGS, MagicMock(), workers)
    ppo.update(tasks)
    return torch.nn.utils.parameters_to_vector(ppo.actor.parameters()).tolist()


def measure(workers: Workers, tasks, folder, monkeypatch) -> object:
    return evaluate_actor(new_actor(), tasks, workers).tolist()


def compare(workers: Workers, tasks, folder, monkeypatch) -> object:
    policy = FrozenPolicy(new_actor(), {"name": "new", "preset": "scale-free", "sha256": "a"})
    jobs = [("tiny", task) for task in [*tasks, tasks[0]]]
    records = compare_all(jobs, [PolicyPart(policy, (0.1,)), ExpertsPart()], folder, workers)
    return [asdict(replace(record, seconds=None, val_seconds=None)) for record in records]


@pytest.mark.parametrize("work", [search, demonstrate, update, measure, compare])
def test_results_do_not_depend_on_the_workers(work, two, tasks, tmp_path, monkeypatch):
    one, other = (
        work(workers, tasks, tmp_path / name, monkeypatch)
        for name, workers in (("one", IN_PROCESS), ("other", two))
    )

    assert one == other


@pytest.mark.parametrize(
    ("work", "module", "name"),
    [(search, expert_search, "_search_on"), (update, outcome_ppo, "roll_out_group")],
    ids=["search", "rollout"],
)
def test_a_killed_worker_changes_nothing(work, module, name, two, tasks, tmp_path, monkeypatch):
    marker = tmp_path / "killed"
    expected = work(IN_PROCESS, tasks, tmp_path, monkeypatch)
    monkeypatch.setattr(module, name, dies_once(getattr(module, name), marker))

    assert work(two, tasks, tmp_path, monkeypatch) == expected
    assert marker.exists()


def test_results_come_in_order_and_items_are_read_a_few_ahead(two):
    read = []

    def items():
        for number in range(60):
            read.append(number)
            yield (number,)

    def slow(number: int, shared: int) -> int:
        time.sleep(0.1 if number == 0 else 0.0)
        return number + shared

    found = two.starmap(slow, items(), 100)

    assert next(found) == 100
    assert len(read) == 32
    assert list(found) == list(range(101, 160))


def test_workers_train_on_one_thread(two):
    def threads() -> int:
        return torch.get_num_threads()

    assert list(two.starmap(threads, [()] * 2)) == [1, 1]


def test_errors_arrive_as_what_they_are(two):
    def fail(number: int) -> None:
        raise InputError(f"Expected less than {number}.")

    for workers in (two, IN_PROCESS):
        with pytest.raises(InputError) as caught:
            next(workers.starmap(fail, [(3,)]))
        assert type(caught.value) is InputError
        assert str(caught.value) == "Expected less than 3."


def test_a_call_that_always_kills_its_worker_ends(two, monkeypatch):
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(parallel, "_LOST_WORKERS", 1)

    with pytest.raises(ResourceError, match=r"workers that last, got: .*The same command goes on"):
        next(two.starmap(die, [()]))


def test_a_worker_with_other_data_is_refused(tiny_task):
    with pytest.raises(InputError, match=r"the data other on every machine, got .*teacher"):
        expert_search.check_data(tiny_task, "other")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r'pip install -e "\.\[ray\]"'), Workers(2):
        pass


def test_one_worker_does_without_ray():
    code = "import sys; from lrenv.training.parallel import Workers\n"
    code += "with Workers() as one: print(*one.starmap(pow, [(2,), (3,)], 2), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "4 9 False\n"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--workers", "0"], "Expected workers of at least 1, got 0; raise it"),
        (["--ray-address", "localhost:1"], "Expected a Ray cluster at localhost:1, got"),
        (["--ray-address", "localhost:x"], "Expected a Ray cluster at localhost:x, got"),
    ],
)
def test_workers_that_cannot_be_had(argv, text, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", MagicMock())

    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--output", str(tmp_path), *argv])

    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_workers_may_change_between_restarts(two, tmp_path, monkeypatch):
    monkeypatch.setattr(generalist, "search_all", MagicMock(side_effect=KeyboardInterrupt))

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            generalist.train_generalist(
                replace(SETTINGS, output=tmp_path, tasks=6, workers=workers)
            )


def train(*argv: str) -> None:
    """Train by the command line, on tasks that need no data set."""
    small = {
        "tasks": 2,
        "held-out": 1,
        "selection": 1,
        "group": 2,
        "rounds": 1,
        "last-clone-steps": 3,
        "updates": 2,
    }
    # So large a budget that the share that is left is 1.0, however long the run takes.
    small |= {"groups-per-update": 2, "critic-warmup": 0, "hours": 1e15}
    task = training_task(0)
    with pytest.MonkeyPatch.context() as patch:
        for module in (families, generalist):
            patch.setattr(module, "training_task", lambda i, family: replace(task, seed=i))
        cli.main(["train", "generalist", *(f"--{k}={v}" for k, v in small.items()), *argv])


def parent(process: str) -> str:
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1]


def kill_worker(driver: int) -> bool:
    """Kill a worker of a driver of Ray that rolls out; says whether there was one."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            busy = (process / "cmdline").read_bytes().startswith((b"ray::_final", b"ray::roll_out"))
            if busy and parent(parent(process.name)) == str(driver):
                os.kill(int(process.name), signal.SIGKILL)
                return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds Ray's workers in /proc")
def test_a_run_whose_worker_is_killed_ends_as_one_that_was_not(tmp_path):
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['train'](*sys.argv[2:])"
    command = [sys.executable, "-c", code, __file__, f"--output={tmp_path}/killed", "--workers=2"]
    env = {**os.environ, "LRENV_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        while not kill_worker(process.pid):
            assert process.poll() is None, "the run ended before a worker was killed"
            time.sleep(0.01)
    assert process.returncode == 0

    train(f"--output={tmp_path}/whole")

    runs = [tmp_path / name for name in ("killed", "whole")]
    cards = [json.loads((run / "default.json").read_text()) for run in runs]
    assert all(card["ratio_to_tuned_expert"]["ppo"].pop("hours") < 1 for card in cards)
    assert cards[0] == cards[1]
    last, expected = (read_state(run / "ppo.pt")["actor"] for run in runs)
    assert all(torch.equal(last[name], expected[name]) for name in expected)
