"""Explanations of a run's learning rates."""

import json
import re
from pathlib import Path

import pytest
import torch

from lrenv import InputError, LearnedLR, load_policy
from lrenv.explain import SIGNALS, attention, explain
from lrenv.observation import FEATURES
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import load_data
from lrenv.training.cli import main


@pytest.fixture(scope="module")
def scheduler(tiny_task) -> LearnedLR:
    trainee = SingleTrainee(tiny_task.spec, load_data(tiny_task.data), 3)
    made = LearnedLR(trainee.optimizer, 40)
    for step in range(40):
        loss = trainee.backward()
        trainee.optimizer.step()
        made.step(loss, val_loss=trainee.evaluate("val")[0] if step % 5 == 0 else None)
    return made


def test_every_feature_but_the_mark_is_in_one_group():
    groups = {name: [f for f in FEATURES if f.startswith(s)] for name, s in SIGNALS.items()}
    assert sorted(f for group in groups.values() for f in group) == sorted(FEATURES[1:])


def test_decisions_are_those_that_were_made(scheduler):
    rows = scheduler.explain()

    assert [row["step"] for row in rows] == [d["step"] for d in scheduler.decisions]
    actions = torch.tensor([d["action"] for d in scheduler.decisions]).clamp(-1, 1)
    changes = torch.tensor([row["change"] for row in rows])
    torch.testing.assert_close(changes, 2 * actions, rtol=0, atol=1e-4)
    assert set(rows[0]["moved_by"]) == set(SIGNALS)
    assert any(abs(row["moved_by"]["training loss"]) > 0.01 for row in rows)


def test_a_share_is_what_the_group_changed(scheduler):
    row = scheduler.explain()[7]
    tokens = torch.tensor([[list(d["features"].values()) for d in scheduler.decisions[:8]]])
    hidden = tokens.clone()
    for name in ("left", "log_left", "interval_share"):
        hidden[..., FEATURES.index(name)] = 0
    actor = scheduler.policy.actor
    expected = 2 * (actor(tokens).clamp(-1, 1) - actor(hidden).clamp(-1, 1))[0, -1]
    assert row["moved_by"]["progress"] == pytest.approx(expected.item(), abs=1e-5)


def test_attention_looks_back_alone(scheduler):
    weights = attention(scheduler.policy, scheduler.decisions)

    n = len(scheduler.decisions)
    assert weights.shape == (n, n)
    torch.testing.assert_close(weights.sum(1), torch.ones(n))
    assert weights.triu(1).abs().max() == 0


def test_logs_without_features_are_refused():
    with pytest.raises(InputError, match="decisions with their features, got none"):
        explain(load_policy(), [])
    with pytest.raises(InputError, match="got some without; only scale-free"):
        explain(load_policy(), [{"step": 1, "lr": 0.1}])


def test_a_classic_policy_explains_nothing(scheduler):
    for function in (explain, attention):
        with pytest.raises(InputError, match="got 'cosine-ppo', a classic one"):
            function(load_policy("cosine-ppo"), scheduler.decisions)


def test_the_command_writes_a_page(scheduler, tmp_path: Path, capsys):
    scheduler.save_decisions(tmp_path / "decisions.jsonl")

    main(["explain", str(tmp_path)])

    page = (tmp_path / "explain.html").read_text()
    assert page.count("<figure>") == 3
    axes = re.findall(r'"yaxis":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*"type":"([^"]+)"', page)
    assert axes == ["log", "-", "-"]  # names are no numbers
    assert "cosine from" in page
    assert all(name in page for name in SIGNALS)
    assert "Signals by what they moved" in capsys.readouterr().out


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"method": "learned"}))
    with pytest.raises(SystemExit):
        main(["explain", str(tmp_path)])
    assert "got: one that is not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "a log without decisions"),
        ('{"step": 3}\n', "a log that names no policy"),
        ('{"policy": "default", "policy_sha256": "0"}\n', "the log of another policy than"),
    ],
)
def test_logs_that_do_not_belong_to_a_policy_are_refused(tmp_path: Path, capsys, log, reason):
    (tmp_path / "decisions.jsonl").write_text(log)
    with pytest.raises(SystemExit):
        main(["explain", str(tmp_path)])
    assert f"got: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"method": "lora"}', '{"policy": "MlpPolicy"}', "[1]"])
def test_settings_of_a_job_of_the_user_s_own_are_left_alone(scheduler, tmp_path: Path, text):
    scheduler.save_decisions(tmp_path / "decisions.jsonl")
    (tmp_path / "settings.json").write_text(text)
    main(["explain", str(tmp_path)])
    assert (tmp_path / "explain.html").exists()


def test_a_policy_that_is_not_there_is_what_is_wrong(scheduler, tmp_path: Path, capsys):
    scheduler.save_decisions(tmp_path / "decisions.jsonl")
    with pytest.raises(SystemExit):
        main(["explain", str(tmp_path), "--policy", "nope"])
    assert "Expected a run folder" not in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "or one with a decisions.jsonl, at" in capsys.readouterr().err
