"""Summaries of an evaluation against values computed by hand."""

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
from lrenv.training.peers import PEERS, effective_lr, usual_peak
from lrenv.training.records import (
    MATCHED,
    TUNED,
    RunRecord,
    bootstrap_interval,
    make_record,
    summarise,
    tuned_test_losses,
)
from lrenv.training.settings import EvaluateSettings

LOSSES = (0.2, 0.001, 0.5, None)


def record(ratio: float | None) -> RunRecord:
    val = None if ratio is None else 0.5 * ratio
    return RunRecord("t", "m", "", 0, ratio, val, val, 0.9, 0.5, 1.0, ratio is None, 1.0, None)


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


def test_the_ratio_of_test_losses_by_hand() -> None:
    tuned = [replace(record(1.0), method=TUNED, seed=k, test_loss=x) for k, x in enumerate(LOSSES)]
    references = tuned_test_losses([*tuned, record(1.0)])
    assert references == {("t", 0): 0.2, ("t", 1): 0.001, ("t", 2): 0.5}
    rows = [replace(record(1.0), seed=k, test_loss=x) for k, x in enumerate((0.4, 0.005, 1.0))]

    def ratio(*rows: RunRecord) -> float | None:
        return summarise("m", rows, references)["test_ratio"]

    assert ratio(rows[0]) == pytest.approx(2.0)
    assert ratio(rows[1]) == pytest.approx(1.0)  # both below the floor of 0.01
    assert ratio(replace(rows[1], test_loss=0.03)) == pytest.approx(3.0)
    assert ratio(*rows) == pytest.approx(4 ** (1 / 3))
    assert ratio(replace(rows[0], diverged=True)) == pytest.approx(math.e**2)
    assert ratio(replace(rows[0], diverged=True), rows[0]) == pytest.approx(math.e * 2**0.5)
    assert ratio(rows[0], replace(rows[0], seed=3)) is None  # whose tuned expert has no test loss
    assert summarise("m", rows)["test_ratio"] is None


def test_means_of_utility_are_over_runs_that_classify() -> None:
    known = replace(record(1.0), top5=0.5, confidence=0.7, cdac=0.1, loss_gap=0.2)
    other = replace(known, test_accuracy=0.7, top5=1.0, confidence=0.9, cdac=0.3, loss_gap=0.4)
    regression = replace(record(1.0), test_accuracy=None, loss_gap=0.6)
    row = summarise("m", [known, other, regression])
    assert [row[k] for k in ("top1", "top5", "confidence", "cdac", "loss_gap")] == pytest.approx(
        [0.8, 0.75, 0.8, 0.2, 0.4]
    )
    assert row["confidence_std"] is None
    without = summarise("m", [regression])
    assert [without[k] for k in ("top1", "top5", "confidence", "cdac")] == [None] * 4
    diverged = summarise("m", [known, replace(known, diverged=True, top5=None)])
    assert diverged["top1"] is None
    assert diverged["top5"] is None


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    generator = torch.Generator().manual_seed(1)
    logs = 0.1 * torch.randn(400, 1, generator=generator).double()
    low, high = bootstrap_interval(logs.tolist())
    assert low < math.exp(float(logs.mean())) < high
    # normal theory: ±1.96 * 0.1 / sqrt(400)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_bootstrap_does_not_take_seeds_for_tasks() -> None:
    logs = torch.randn(20, 1, generator=torch.Generator().manual_seed(1)).double()
    assert bootstrap_interval(logs.expand(20, 3).tolist()) == pytest.approx(
        bootstrap_interval(logs.tolist())
    )
    # one task: seeds alone are drawn, whose means lie between the least and the greatest
    low, high = bootstrap_interval([[0.0, 1.0]])
    assert (low, high) == pytest.approx((1.0, math.e))


def test_a_summary_draws_tasks_and_seeds_and_averages_hints() -> None:
    ratios = {
        ("a", 0): (1.0, 4.0),
        ("a", 1): (2.0, 2.0),
        ("b", 0): (8.0, 2.0),
        ("b", 1): (4.0, 4.0),
    }
    rows = [
        replace(record(ratio), task=task, seed=seed)
        for (task, seed), hints in ratios.items()
        for ratio in hints
    ]
    row = summarise("m", rows)
    expected = bootstrap_interval(torch.tensor([[2.0, 2.0], [4.0, 4.0]]).log().tolist())
    assert (row["low"], row["high"]) == pytest.approx(expected, rel=1e-5)
    assert (row["low"], row["high"]) == pytest.approx((2.0, 4.0), rel=1e-5)


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


def test_the_time_to_the_tuned_expert_by_hand() -> None:
    curves = [[1.0, 0.5, 0.4, 0.45], [1.0, 0.6, 0.55, 0.51], [1.0, None, None, None], None]
    ratios = (0.9, 1.02, None, 1.0)  # the tuned expert ends at 0.5
    rows = [replace(record(r), val_curve=c) for r, c in zip(ratios, curves, strict=True)]

    assert [row.time_to_tuned for row in rows] == [0.5, math.inf, math.inf, None]
    assert summarise("m", rows)["median_time"] is None
    assert summarise("m", rows)["reached"] == pytest.approx(1 / 3)
    assert summarise("m", [rows[0], rows[0], rows[1]])["median_time"] == 0.5
    assert summarise("m", [rows[3]])["reached"] is None


def test_the_cost_to_the_tuned_expert_by_hand() -> None:
    row = replace(record(0.9), val_curve=[1.0, 0.6, 0.5, 0.4], val_steps=[3, 6, 9, 12])
    timed = replace(row, val_seconds=[0.1, 0.25, 0.5, 0.75])
    never = replace(timed, val_curve=[1.0, None, 0.6, 0.51])

    assert (row.steps_to_tuned, row.seconds_to_tuned) == (9.0, None)
    assert (timed.steps_to_tuned, timed.seconds_to_tuned) == (9.0, 0.5)
    assert (never.steps_to_tuned, never.seconds_to_tuned) == (math.inf, math.inf)
    assert record(1.0).steps_to_tuned is None
    quick = replace(timed, val_curve=[0.5, 0.4, 0.4, 0.4])
    summary = summarise("m", [quick, timed, never])
    assert (summary["median_steps"], summary["median_seconds"]) == (9.0, 0.5)
    assert summarise("m", [never])["median_steps"] is None
    assert summarise("m", [row])["median_seconds"] is None


def test_losses_below_the_floor_are_alike() -> None:
    def ratio(val: float, reference: float) -> float | None:
        history = (torch.ones(3), torch.ones(3))
        return make_record(("t", "m", "", 0), reference, [val, 1.0, 1.0], history).ratio

    assert ratio(1e-6, 1e-9) == 1.0
    assert ratio(0.02, 0.0) == pytest.approx(2.0)
    assert ratio(1e-6, 0.02) == pytest.approx(0.5)
    assert ratio(0.3, 0.2) == pytest.approx(1.5)
    row = make_record(("t", "m", "", 0), 0.0, [0.0] * 3, (torch.ones(3),) * 2, None, [1.0, 0.01])
    assert row.time_to_tuned == 1.0


def test_the_area_of_the_profile_by_hand() -> None:
    row = summarise("m", [record(r) for r in (0.5, 1.25, 3.0, None)])
    assert row["profile_area"] == pytest.approx((1 + 0.75) / 4)


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
