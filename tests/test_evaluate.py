"""The methods of an evaluation on one task, what is kept of them, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrenv.errors import InputError
from lrenv.observation import FEATURES
from lrenv.policies.frozen import FrozenPolicy
from lrenv.policies.network import Head
from lrenv.scheduler import LearnedLR
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task
from lrenv.training import evaluate
from lrenv.training.compare import (
    ExpertsPart,
    OtherSeedPart,
    PeerPart,
    PolicyPart,
)
from lrenv.training.evaluate import (
    collect_results,
    compare_all,
    compared_parts,
    evaluated_tasks,
)
from lrenv.training.expert_search import SearchResult, search_experts
from lrenv.training.peers import PEERS, Peer, PeerRun, effective_lr, usual_peak
from lrenv.training.records import (
    MATCHED,
    TUNED,
    summarise,
)
from lrenv.training.settings import EvaluateSettings


@pytest.fixture
def policy() -> FrozenPolicy:
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES))
    return FrozenPolicy(actor, {"name": "random", "preset": "scale-free", "sha256": "a"})


def test_what_was_compared_is_not_run_again(
    policy: FrozenPolicy, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [("tiny", tiny_task), ("tiny", replace(tiny_task, seed=4))]
    parts = [PolicyPart(policy, (0.1, 0.01)), ExpertsPart(), OtherSeedPart(), PeerPart("plateau")]
    first = compare_all(jobs, parts, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(evaluate, "_run_part", refuse)
    assert compare_all(jobs, parts, tmp_path) == first
    assert compare_all(jobs, parts[1:], tmp_path) == [
        record for record in first if not record.method.startswith(("learned", MATCHED))
    ]
    assert {record.seed for record in first} == {3, 4}
    assert sum(record.method == "learned: random" for record in first) == 4
    assert sum(record.method == "LR-matched constant: random" for record in first) == 2
    for part in (
        PolicyPart(FrozenPolicy(policy.actor, {**policy.card, "sha256": "b"}), (0.1, 0.01)),
        PolicyPart(policy, (0.1,)),
        PolicyPart(policy, (0.1, 0.01), layerwise=True),
        PolicyPart(policy, (0.1, 0.01), rollback=True),
        PolicyPart(policy, (0.1, 0.01), validate=True),
        ExpertsPart(0.3),
        PeerPart("plateau", 0.3),
        PeerPart("plateau", tuned=True),
        PeerPart("greedy"),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            compare_all(jobs, [part], tmp_path)


def test_a_policy_is_told_the_validation_losses_that_are_measured(
    policy: FrozenPolicy, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    def report(_: LearnedLR, loss: object = None, val_loss: float | None = None) -> None:
        told.extend([] if val_loss is None else [val_loss])

    monkeypatch.setattr(LearnedLR, "step", report)
    search = search_experts(tiny_task)
    for validate in (False, True):
        record, _ = PolicyPart(policy, validate=validate).run(tiny_task, "tiny", search)
        assert told == (record.val_curve if validate else [])


def test_an_expert_is_taken_over_from_another_seed(tiny_task: Task) -> None:
    search, other = (search_experts(replace(tiny_task, seed=seed)) for seed in (3, 4))
    (record,) = OtherSeedPart().run(tiny_task, "tiny", search)

    assert tiny_task.seed == record.seed == 3
    assert other.best != search.best
    assert record.detail == f"{other.kinds[other.best]}, peak {other.peaks[other.best]:.3g}"
    assert record.val_loss == pytest.approx(search.val_loss[other.best], rel=1e-4)
    assert record.ratio > 1.0
    assert summarise(record.method, [record])["tuning_runs"] == len(search.kinds)


@pytest.mark.parametrize(
    ("best", "peak", "expected"),
    [
        (2, 1.0, 2),
        (10, 1.0, 10),
        (3, 1.0, 6),
        (1, 1.0, 6),
        (3, 2.0, 3),
        (0, 1e-9, 0),
        (12, 1e9, 12),
    ],
)
def test_a_cosine_is_tuned_at_five_peaks_around_one(
    tiny_task: Task, best: int, peak: float, expected: int
) -> None:
    peaks = [10 ** (k / 3 - 2) for k in range(13)]
    losses = [0.5 if k == best else 0.6 if k == 6 else 0.7 for k in range(13)]
    kinds = ("cosine",) * 13 + ("linear",) * 13
    search = SearchResult(kinds, (*peaks, *peaks), (*losses, *[0.1] * 13), (1.0,) * 26)
    records = ExpertsPart(peak).run(tiny_task, "tiny", search)
    (record,) = (record for record in records if record.method == "cosine, tuned")

    assert record.detail == f"cosine, peak {peaks[expected]:.3g}"
    assert summarise(record.method, [record])["tuning_runs"] == 5


NEW = {"val_steps", "val_seconds", "top5", "confidence", "confidence_std", "cdac", "loss_gap"}


def test_records_of_before_still_load(tiny_task: Task, tmp_path: Path) -> None:
    first = compare_all([("tiny", tiny_task)], [ExpertsPart()], tmp_path)
    (path,) = tmp_path.glob("records/*/*.json")
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{k: v for k, v in row.items() if k not in NEW} for row in rows]))
    found = compare_all([("tiny", tiny_task)], [ExpertsPart()], tmp_path)

    assert found == [replace(record, **dict.fromkeys(NEW)) for record in first]
    assert all(record.top5 is not None for record in first)
    summary = {
        row["method"]: row for row in collect_results("t", {}, [tiny_task], found)["summary"]
    }
    assert summary[TUNED]["test_ratio"] == 1.0
    assert summary["cosine"]["test_ratio"] > 0.5
    assert summary["cosine"]["top1"] == found[1].test_accuracy
    assert summary["cosine"]["top5"] is None


def test_methods_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="of different names, got default, default; comp"):
        compared_parts(EvaluateSettings(policies=("default", "default")))
    with pytest.raises(InputError, match="each peer once, got dog, dog; name it once"):
        compared_parts(EvaluateSettings(peers=("dog", "dog")))
    with pytest.raises(InputError, match=r"peers among all, plateau, .*; got 'sgd'"):
        compared_parts(EvaluateSettings(peers=("sgd",)))
    assert len(compared_parts(EvaluateSettings(peers=("all",)))) == 3 + len(PEERS)


def test_a_peer_without_its_package_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(InputError, match=r"prodigyopt for the peer Prodigy, .*\[peers\]"):
        compared_parts(EvaluateSettings(peers=("prodigy",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hints": ()}, "Expected some hints, got none; name one"),
        ({"hints": (0.1, 0.1)}, "Expected each of the hints once, got 0.1, 0.1"),
        ({"policies": ()}, "Expected some policies, got none; name one"),
        ({"hints": (0.1, 0.0)}, "Expected finite hints above 0, got 0.0; name another LR"),
        ({"hints": (math.nan,)}, "Expected finite hints above 0, got nan; name another LR"),
        ({"peak": -1.0}, "Expected a finite peak above 0, got -1.0; name another LR"),
        ({"peak": math.nan}, "Expected a finite peak above 0, got nan; name another LR"),
        ({"peak": math.inf}, "Expected a finite peak above 0, got inf; name another LR"),
    ],
)
def test_settings_that_make_no_comparison_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(EvaluateSettings(output=tmp_path, **change))


def test_suites_have_their_own_tasks() -> None:
    assert list(evaluated_tasks(EvaluateSettings())) == ["mlp-mnist, adam", "mlp-mnist, sgd"]
    assert len(evaluated_tasks(EvaluateSettings(suite="unseen-mlps"))) == 24
    unseen = evaluated_tasks(EvaluateSettings(suite="unseen"))
    assert len(unseen) == 24
    assert len(evaluated_tasks(EvaluateSettings(suite="unseen-heavy"))) == 26
    assert len(set(evaluated_tasks(EvaluateSettings(suite="harsh")).values())) == 14
    with pytest.raises(InputError, match=r"no total_steps beside the suite unseen"):
        evaluated_tasks(EvaluateSettings(suite="unseen", total_steps=9))


def test_all_methods_train_on_one_task(policy: FrozenPolicy, tiny_task: Task) -> None:
    search = search_experts(tiny_task)
    parts = [PolicyPart(policy, (0.1,)), ExpertsPart()]
    extras = ("layerwise", "rollback", "validate")
    parts += [PolicyPart(policy, **{extra: True}) for extra in extras]
    parts += [PeerPart(name, tuned=True) for name in PEERS]
    found = [row for part in parts for row in part.run(tiny_task, "tiny", search)]
    rows = {row.method: row for row in found}

    matched = "LR-matched constant: random"
    assert set(rows) >= {"learned: random", matched, "linear", "wsd", "constant", "tuned expert"}
    assert len(rows) == len(found)
    told = {f"learned: random, {extra}" for extra in ("with LC", "rollback", "validation")}
    assert set(rows) >= told
    assert rows["tuned expert"].ratio == pytest.approx(1.0, rel=1e-4)
    assert rows["tuned expert"].time_to_tuned <= 1.0
    assert rows["tuned expert"].steps_to_tuned == 40 * rows["tuned expert"].time_to_tuned
    assert rows["tuned expert"].seconds_to_tuned is None
    learned = rows["learned: random"]
    assert learned.val_seconds == sorted(learned.val_seconds)
    assert 0.0 < learned.val_seconds[0] < learned.val_seconds[-1] <= learned.seconds
    for row in rows.values():
        assert 0.0 < row.confidence < 1.0
        assert row.cdac < row.confidence
        assert row.top5 == 1.0  # of 3 classes
        assert row.loss_gap >= 0.0
        assert row.val_steps == (None if row.val_curve is None else list(range(2, 41, 2)))
    lrs = torch.tensor(rows["learned: random"].curve["lr"])
    assert rows[matched].curve["lr"][0] == pytest.approx(float(lrs.mean()), rel=0.05)
    for peer in PEERS.values():
        default, tuned = rows[peer.label], rows[f"{peer.label}, tuned"]
        assert tuned.ratio <= default.ratio
        assert default.detail == "scale 1"
        assert tuned.val_loss < 1.1 * default.curve["loss"][0]
        assert (default.val_curve is None) == (peer.label in ("DoG", "Schedule-Free AdamW"))
        assert summarise(tuned.method, [tuned])["tuning_runs"] == 5
    assert len({row.val_loss for row in rows.values()}) > 16


def test_peers_set_the_lr_as_they_should(tiny_task: Task) -> None:
    def lrs(name: str, scale: float = 1.0) -> list[float]:
        trainee = build_trainee(tiny_task)
        after, found = PEERS[name].start(trainee, 0.2, scale).after_step, []
        for _ in range(trainee.total_steps):
            loss = trainee.backward()
            trainee.optimizer.step()
            found.append(effective_lr(trainee.optimizer))
            after(loss)
        return found

    cycle = lrs("one-cycle", 0.5)
    assert max(cycle) == pytest.approx(0.1)
    assert cycle[0] == pytest.approx(0.1 / 25)
    assert cycle[-1] == pytest.approx(0.1 / 25e4)
    assert lrs("plateau", 3.0)[0] == pytest.approx(0.6)
    assert lrs("greedy")[0] == pytest.approx(0.2)
    assert len({round(lr, 9) for lr in lrs("greedy")}) > 1
    assert lrs("prodigy")[-1] > 10 * lrs("prodigy")[0]
    assert lrs("prodigy-cosine")[-1] < 0.1 * max(lrs("prodigy-cosine"))


def test_usual_peaks() -> None:
    peaks = [usual_peak(OptimizerSpec(*spec)) for spec in (("adam",), ("sgd", 0.9), ("sgd", 0.0))]
    assert peaks == [1e-3, 1e-2, 1e-1]


def test_a_peer_that_refuses_gradients_has_diverged(
    tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(torch.optim.SGD):
        steps, bad_gradient = 0, float("nan")

        def step(self, closure: object = None) -> None:
            self.steps += 1
            if self.steps == 5:
                self.param_groups[0]["params"][0].grad.fill_(self.bad_gradient)
                raise AssertionError("refused")  # as DoG does
            super().step()

    def start(trainee: SingleTrainee, peak: float, scale: float) -> PeerRun:
        trainee.optimizer = Refusing(trainee.model.parameters(), lr=peak)
        return PeerRun()

    monkeypatch.setitem(PEERS, "refusing", Peer("Refusing", start))
    search = SearchResult(("x",), (1.0,), (1.0,), (1.0,))
    (row,) = PeerPart("refusing").run(tiny_task, "tiny", search)
    monkeypatch.setattr(Refusing, "bad_gradient", 0.0)
    with pytest.raises(AssertionError, match="refused"):
        PeerPart("refusing").run(tiny_task, "tiny", search)

    assert row.diverged
    assert row.ratio is None
    assert row.test_loss is None
