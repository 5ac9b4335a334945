"""``lrenv tune``: the three modes, on tiny runs."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from lrenv.errors import InputError
from lrenv.training.bench.database import PolicyDatabase
from lrenv.training.bench.settings import TuneSettings
from lrenv.training.bench.tune import _job, tune
from lrenv.training.parallel import ray_cluster

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module", autouse=True)
def two():
    with ray_cluster(2) as ray:
        yield ray


@pytest.fixture
def settings(tmp_path):
    return TuneSettings(
        trainee="mlp-mnist-classic",
        total_steps=60,
        policies=("FIX", "COS"),
        low=1e-4,
        high=1e-1,
        search="random",
        trials=3,
        learned=None,
        database=str(tmp_path / "policies.sqlite"),
        output=tmp_path / "tune",
    )


@pytest.mark.parametrize("search", ["grid", "bayesian"])
def test_single_policies(settings, capsys, search):
    records = tune(replace(settings, search=search, points=2))

    assert len(records) == 3
    assert all(r.task == "mlp-mnist-classic, adam" for r in records)
    kept = json.loads((settings.output / "sweep.json").read_text())
    assert [t["uid"] for t in kept["trials"]] == [r.uid for r in records]
    page = (settings.output / "sweep.html").read_text()
    best = min(records, key=lambda r: r.metrics["val_loss"])
    assert f"least validation loss: {best.policy}" in page
    assert f"{best.metrics['val_loss']:.4g}" in capsys.readouterr().out


def test_compositions(settings):
    records = tune(replace(settings, mode="composition", same_kind=True))

    for record in records:
        assert record.policy.count("lrPolicy_") == 2
        assert "-AT-" in record.policy
        assert record.policy.count("COS") in (0, 2)


def test_cost_with_a_learned_policy_and_a_search_around_it(settings, capsys):
    cost = replace(settings, mode="cost", target=1e-3, learned="mlp", around=True)

    first, *others = tune(cost)

    assert (first.policy_kind, first.policy) == ("learned", "mlp")
    top = max(first.curve["lr"])
    assert all(0.09 * top < float(r.policy[3:].split("+")[0]) < 3.1 * top for r in others)
    out = " ".join(capsys.readouterr().out.split())
    assert "No trial reached a validation loss of 0.001; the closest is" in out


def test_resume_takes_the_settings_of_the_folder(settings, tmp_path):
    tune(replace(settings, trials=2))
    other = TuneSettings(output=settings.output, resume=True)

    again = tune(other)

    assert len(again) == 2
    with PolicyDatabase(settings.database) as database:
        assert database.counts()["trials"] == 2
    more = tune(replace(settings, trials=4))
    assert [r.uid for r in more[:2]] == [r.uid for r in again]
    assert len(more) == 4
    assert len(tune(replace(other, trials=5, workers=2))) == 5
    with pytest.raises(
        InputError, match=r"Expected the settings .* got low=0\.01 instead of 0\.0001"
    ):
        tune(replace(settings, low=0.01))
    with pytest.raises(InputError, match=r"Expected a sweep in .*nowhere, got none"):
        tune(replace(other, output=tmp_path / "nowhere"))


def write_function(folder: Path, power: int) -> None:
    """Write ``my_training.py``, and see to it that it is imported anew, by workers too."""
    import ray.cloudpickle

    (folder / "my_training.py").write_text(
        "def train(trial):\n"
        "    weight = 1.0\n"
        "    for step in range(trial.total_steps):\n"
        "        weight -= trial.lr(step) * weight\n"
        f"    trial.report(trial.total_steps, weight**{power})\n"
    )
    sys.modules.pop("my_training", None)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    ray.cloudpickle.register_pickle_by_value(importlib.import_module("my_training"))


def test_a_function_of_the_users(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    own = replace(settings, function="my_training:train", total_steps=10)
    write_function(tmp_path, 2)
    records = tune(own)
    tune(own)
    assert "makes a new sweep" not in capsys.readouterr().out
    write_function(tmp_path, 4)
    changed = tune(own)
    assert "makes a new sweep" in capsys.readouterr().out
    write_function(tmp_path, 2)

    assert {r.status for r in records} == {"done"}
    assert records[0].task == "my_training:train"
    for before, after in zip(records, changed, strict=True):
        assert before.policy == after.policy
        assert after.metrics["val_loss"] == pytest.approx(before.metrics["val_loss"] ** 2)
    assert {r.task_key for r in records} != {r.task_key for r in changed}
    assert _job(own)[1].name == records[0].sweep
    with pytest.raises(InputError, match="Expected a training function as module:name, got 'no:t'"):
        tune(replace(settings, function="no:t"))


def copy_policy(name: str, to: Path) -> Path:
    for suffix in (".json", ".safetensors"):
        with resources.as_file(resources.files("lrenv.checkpoints") / f"{name}{suffix}") as file:
            shutil.copy(file, to.with_suffix(suffix))
    return to


def test_a_learned_policy_is_found_by_workers_and_known_by_its_hash(
    settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copy_policy("default", Path("mine.json"))
    [record] = tune(replace(settings, learned="mine.json", trials=1))[:1]

    assert (record.status, record.policy) == ("done", str(tmp_path / "mine.json"))
    other = copy_policy("default", tmp_path / "other.json")
    assert _job(replace(settings, learned=str(other), trials=1))[1].name == record.sweep
    copy_policy("mlp", other)
    assert _job(replace(settings, learned=str(other), trials=1))[1].name != record.sweep
    with pytest.raises(InputError, match=r"Expected a policy card at none\.json"):
        tune(replace(settings, learned="none.json", output=tmp_path / "none"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "Expected trials of at least 1, got 0"),
        ({"workers": 0}, "Expected workers of at least 1, got 0"),
        ({"max_steps": 0}, "Expected max_steps above 0, got 0; leave it out for no limit"),
        ({"search": "grid", "points": 1}, "Expected .*points"),
        ({"seed": -1}, "Expected a seed from 0 to 2147483647, got -1; name another"),
        ({"mode": "cost"}, "Expected a target in the mode cost and in no other, got None"),
        ({"target": 0.1}, "got 0.1 in single"),
        ({"around": True}, "Expected a learned policy to search around, got none"),
        ({"policies": ("HAT",)}, "Expected policies among FIX, .*; got HAT"),
        ({"high": 1e-5}, "Expected a range of LRs from low to a higher high"),
        ({"trainee": "vgg"}, "Expected a trainee among"),
        ({"database": "postgresql://127.0.0.1:9/none"}, "Expected .*127.0.0.1"),
    ],
)
def test_unusable_settings(settings, change, message):
    with pytest.raises(InputError, match=message):
        tune(replace(settings, **change))
    bound = (settings.output / "settings.json").exists()
    assert bound == ("database" in change)  # nothing else is tried behind it


def diverge(trial):
    trial.report(1, 1e999)


def fail(trial):
    raise RuntimeError("no\ndata")


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (diverge, "Expected a trial that comes to its end, got none; see the page"),
        (fail, r"got none \(k0_\S+: RuntimeError: no data\); see the page"),
    ],
)
def test_no_trial_comes_to_its_end(settings, monkeypatch, train, text):
    monkeypatch.setattr("lrenv.training.bench.tune.TrainTrainee", lambda task: train)
    with pytest.raises(InputError, match=text):
        tune(replace(settings, trials=1))

    kept = json.loads((settings.output / "sweep.json").read_text())
    assert len(kept["trials"]) == 1
    assert "None came to its end" in (settings.output / "sweep.html").read_text()
