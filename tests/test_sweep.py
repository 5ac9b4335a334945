"""Sweeps on Ray Tune: each trial is recorded once, whatever is killed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from databases import trial as example

from lrenv.errors import InputError
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.space import SearchSpace, proposals
from lrenv.training.bench.sweep import Sweep, _TooDear, run_sweep
from lrenv.training.bench.trial import TrainTrainee, Trial
from lrenv.training.parallel import ray_cluster

pytestmark = pytest.mark.xdist_group("ray")

STEPS = 40
SPACE = SearchSpace(("FIX", "COS", "POLY"), 1e-3, 1.0, STEPS)
SWEEP = Sweep(name="test", task="tiny", task_key="key", total_steps=STEPS, max_trials=6)
TASK = Task(
    DataSpec("teacher", projection=6, n_classes=3, n_train=200),
    MLPSpec((8,), optimizer=OptimizerSpec("sgd", 0.9), batch_size=8, total_steps=STEPS),
    seed=3,
)


@pytest.fixture(scope="module")
def two():
    with ray_cluster(2) as ray:
        yield ray


@pytest.fixture
def database(tmp_path):
    with PolicyDatabase(tmp_path / "policies.sqlite") as found:
        yield found


def run(sweep, database, folder, train=None, walk="random", learned=()):
    walked = proposals(SPACE, walk, 2, 0)
    return run_sweep(train or TrainTrainee(TASK), sweep, walked, database, folder, learned=learned)


def outcomes(records):
    return [(r.uid, r.policy, r.status, r.metrics, r.curve) for r in records]


def test_a_sweep_records_each_trial_with_its_curve(two, database, tmp_path):
    records = run(SWEEP, database, tmp_path, learned=["default"])

    assert [r.parameters["index"] for r in records] == list(range(-1, 6))
    assert [r.policy_kind for r in records] == ["learned"] + ["lrbench"] * 6
    best = SWEEP.best(records)
    assert best.metrics["val_loss"] == min(r.metrics["val_loss"] for r in records)
    for record in records:
        assert record.status == "done"
        assert record.steps == record.curve["step"][-1] == STEPS
        assert len(record.curve["val_loss"]) == 20
        assert {"val_loss", "test_loss", "top1"} == set(record.metrics)
        assert record.seconds > 0
    assert database.uids() == {r.uid for r in records}
    assert not (tmp_path / "ray").exists()


def test_a_sweep_goes_on_with_what_is_missing(two, database, tmp_path):
    whole = run(SWEEP, database, tmp_path)
    with PolicyDatabase(tmp_path / "other.sqlite") as other:
        run(replace(SWEEP, max_trials=2), other, tmp_path)
        other.add([r for r in whole if r.parameters["index"] == 4])
        again = run(SWEEP, other, tmp_path)

    assert outcomes(again) == outcomes(whole)


@pytest.mark.parametrize(
    ("limit", "least"), [({"max_steps": 3 * STEPS}, 3), ({"max_seconds": 1e-6}, 1)]
)
def test_a_budget_of_steps_or_seconds(two, database, tmp_path, limit, least):
    records = run(replace(SWEEP, max_trials=30, **limit), database, tmp_path)

    # Trials that run when the budget is spent come to their end.
    assert least <= len(records) <= least + 3


def test_cost_ends_runs_at_the_target_and_those_that_are_too_dear(two, database, tmp_path):
    losses = run(SWEEP, database, tmp_path)
    target = sorted(r.metrics["val_loss"] for r in losses)[1]
    sweep = replace(SWEEP, name="cost", measure="steps", target=target, max_trials=12)

    records = run(sweep, database, tmp_path)

    reached = [r for r in records if r.metrics["val_loss"] <= target]
    best = sweep.best(records)
    assert best in reached
    assert best.steps == min(r.steps for r in reached) == sweep.value(best)
    for record in records:
        assert all(loss > target for loss in record.curve["val_loss"][:-1])
        if record.status == "stopped":
            assert record.steps < STEPS
            assert sweep.value(record) > STEPS


def test_a_miss_rises_with_the_loss_and_stays_behind_every_run():
    sweep = replace(SWEEP, measure="steps", target=-0.5)
    losses = [-0.4, 0.0, 3.0, 1e9, math.inf]
    values = [sweep.value(example("a", metrics={"val_loss": loss})) for loss in losses]

    assert sweep.value(example("a", steps=7, metrics={"val_loss": -0.6})) == 7.0
    assert values == sorted(set(values))
    # 40 (2 - 1 / 1.5)
    assert values[1] == pytest.approx(40 * 4 / 3)
    assert STEPS < values[0] < values[-1] == 2 * STEPS
    assert sweep.value(example("a", metrics={})) == 2 * STEPS
    assert replace(sweep, target=0.0).value(example("a", metrics={"val_loss": 1.0})) == 1.5 * STEPS


def test_what_is_too_dear_is_known_behind_a_restart():
    sweep = replace(SWEEP, measure="steps", target=0.5)
    records = [
        example("a", steps=20, metrics={"val_loss": 0.4}),
        example("b", steps=10, metrics={"val_loss": 0.6}),
        example("c", steps=10, metrics={"val_loss": 0.4}, status="failed"),
    ]
    too_dear = _TooDear(sweep, records)

    assert not too_dear("x", {"step": 19, "reached": False})
    assert too_dear("x", {"step": 20, "reached": False})
    assert not too_dear("x", {"step": 15, "reached": True})
    assert too_dear("y", {"step": 15, "reached": False})
    assert not too_dear("z", {"status": "failed", "seconds": 9.0})


def test_early_stopping_spends_less_and_never_on_the_winner(two, database, tmp_path):
    full = run(replace(SWEEP, max_trials=16), database, tmp_path)
    short = run(replace(SWEEP, name="asha", max_trials=16, early_stopping=True), database, tmp_path)

    stopped = [r for r in short if r.status == "stopped"]
    assert stopped
    assert sum(r.steps for r in short) < sum(r.steps for r in full)
    assert replace(SWEEP, name="asha").best(short).status == "done"


def test_a_function_that_raises_or_diverges_or_says_nothing(two, database, tmp_path):
    def train(trial):
        peak = trial.lr(0)
        if peak > 0.5:
            raise RuntimeError("no more LR")
        if peak > 0.2:
            return
        if peak > 0.01:
            trial.report(1, float("nan"))
            return
        for step in range(1, STEPS + 1):
            if not trial.report(step, 1.0 / step, metrics={"mine": 2.0}):
                return

    space = SearchSpace(("FIX",), 1e-3, 1.0, STEPS)
    walked = proposals(space, "grid", 7, 0)
    records = run_sweep(train, replace(SWEEP, max_trials=7), walked, database, tmp_path)

    found = {float(r.policy.split("_")[1].split("+")[0]): r for r in records}
    statuses = [found[peak].status for peak in sorted(found)]
    assert statuses == ["done"] * 3 + ["diverged"] * 2 + ["failed"] * 2
    assert found[1.0].error == "RuntimeError: no more LR"
    assert [r.error for p, r in found.items() if 0.2 < p < 0.5] == ["It reported nothing."]
    assert found[0.001].metrics == {"mine": 2.0, "val_loss": 1.0 / STEPS}
    assert SWEEP.best(records).status == "done"


def test_a_failed_trial_keeps_its_steps_and_is_tried_again(two, database, tmp_path):
    mended = tmp_path / "mended"

    def train(trial):
        for step in range(1, STEPS + 1):
            if not trial.report(step, 1.0 / step, lr=trial.lr(step)):
                return
            if step == 10 and not mended.exists():
                raise RuntimeError("full")

    sweep = replace(SWEEP, max_trials=8, max_steps=20, measure="steps", target=0.05)
    failed = run(sweep, database, tmp_path, train)
    quiet = database.counts()["trials"]
    mended.touch()
    again = run(replace(sweep, max_trials=quiet, max_steps=None), database, tmp_path, train)

    # Two trials spend the budget, a third may run beside them.
    assert 2 <= quiet <= 3
    for record in failed:
        assert (record.status, record.error, record.steps) == ("failed", "RuntimeError: full", 10)
        assert record.curve["step"] == list(range(1, 11))
        assert record.seconds > 0
    assert [r.uid for r in again] == [r.uid for r in failed]
    assert {(r.status, r.steps) for r in again} == {("done", 20)}
    assert database.counts()["trials"] == database.counts()["curves"] == quiet


def test_a_function_that_returns_by_itself_is_done(two, database, tmp_path):
    def train(trial):
        (tmp_path / "folder").write_text(os.getcwd())
        for step in (15, 30):
            loss = torch.tensor(1.0 / step, requires_grad=True)
            lr, metrics = torch.tensor([0.5]), {"mine": torch.tensor(2.0)}
            trial.report(step, loss, loss, lr, metrics)

    [record] = run(replace(SWEEP, max_trials=1), database, tmp_path, train)

    assert (record.status, record.steps) == ("done", 30)
    assert record.metrics == {"mine": 2.0, "val_loss": pytest.approx(1 / 30)}
    assert record.curve["train_loss"] == pytest.approx([1 / 15, 1 / 30])
    assert record.curve["lr"] == [0.5, 0.5]
    assert (tmp_path / "folder").read_text() == os.getcwd()


@pytest.mark.filterwarnings("ignore:.get_checkpoint")
def test_a_learned_policy_has_no_lr_to_ask_for():
    with pytest.raises(InputError, match=r"Expected a policy of LRBench, got 'learned:default'; "):
        Trial("learned:default", STEPS).lr(0)


@pytest.mark.filterwarnings("ignore:.get_checkpoint", "ignore:Expected a run of at least 100")
def test_a_trial_schedules_an_optimizer_where_its_policy_is_learned():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    learned = Trial("learned:mlp", STEPS).learned(optimizer)

    assert learned.policy.name == "mlp"
    assert learned.controller.plan.total_steps == STEPS
    assert Trial("k0_0.1+lrPolicy_FIX", STEPS).learned(optimizer) is None


def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(two, database, tmp_path):
    folder = str(tmp_path)

    def train(trial):
        start = trial.state["step"] if trial.state else 0
        for step in range(start + 1, STEPS + 1):
            # Past the pause between two checkpoints.
            trial._saved = -1e9
            trial.report(step, 1.0 / step, state=lambda step=step: {"step": step})
            with open(f"{folder}/steps", "a") as file:
                file.write(f"{start} {step}\n")
            if step == 20 and not start:
                os.kill(os.getpid(), signal.SIGKILL)

    records = run(replace(SWEEP, max_trials=1), database, tmp_path, train)

    rows = [tuple(map(int, line.split())) for line in (tmp_path / "steps").read_text().splitlines()]
    assert records[0].status == "done"
    assert records[0].curve["step"] == list(range(1, STEPS + 1))
    starts = sorted({start for start, _ in rows})
    assert starts[0] == 0
    assert 10 <= starts[1] <= 20
    assert len(starts) == 2


JOB = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_sweep import SPACE, SWEEP, TASK
from dataclasses import replace
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.space import proposals
from lrenv.training.bench.sweep import run_sweep
from lrenv.training.bench.trial import TrainTrainee

train, markers = TrainTrainee(TASK), Path({folder!r}) / "killed"

def dying(trial):
    # The workers of the first {kills} trials to get here are killed within their runs.
    report = trial.report
    def dying_report(step, *args):
        if step == 20 and len(list(markers.iterdir())) < {kills}:
            (markers / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return report(step, *args)
    trial.report = dying_report
    train(trial)

if __name__ == "__main__":
    markers.mkdir(exist_ok=True)
    with PolicyDatabase({place!r}) as database:
        walked = proposals(SPACE, "random", 2, 0)
        run_sweep(dying, replace(SWEEP, max_trials={trials}), walked, database, markers.parent)
"""


def start(place: Path, trials: int, kills: int) -> subprocess.Popen:
    """Start a sweep in a process of its own, whose folder is named like its database."""
    folder = place.with_suffix("")
    folder.mkdir(exist_ok=True)
    values = {"tests": str(Path(__file__).parent), "place": str(place), "folder": str(folder)}
    job = folder / "job.py"
    job.write_text(JOB.format(**values, trials=trials, kills=kills))
    return subprocess.Popen([sys.executable, str(job)], start_new_session=True)


def recorded(place: Path) -> int:
    with PolicyDatabase(place) as database:
        return database.counts()["trials"]


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "drivers", "workers"), [(200, 5, 10)])
def test_trials_are_recorded_once_whatever_is_killed(tmp_path, trials, drivers, workers):
    """Drivers and workers are killed; the winner is that of a quiet sweep."""
    quiet, place = tmp_path / "quiet.sqlite", tmp_path / "killed.sqlite"
    assert start(quiet, trials, 0).wait() == 0
    for number in range(1, drivers + 1):
        driver = start(place, trials, workers)
        while recorded(place) < number * trials / (drivers + 1):
            assert driver.poll() is None
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert recorded(place) < trials
    assert start(place, trials, workers).wait() == 0

    assert len(list((tmp_path / "killed" / "killed").iterdir())) == workers
    with PolicyDatabase(quiet) as one, PolicyDatabase(place) as other:
        expected, found = (db.trials(sweep="test", curves=True) for db in (one, other))
    assert len(found) == len({r.uid for r in found}) == trials
    assert SWEEP.best(found).uid == SWEEP.best(expected).uid
    assert sorted(outcomes(found), key=str) == sorted(outcomes(expected), key=str)


def test_records_are_json(two, database, tmp_path):
    records = run(replace(SWEEP, max_trials=1), database, tmp_path)
    assert json.loads(json.dumps(vars(records[0])))["sweep"] == "test"
