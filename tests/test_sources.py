"""The tables of the sources on tiny trainees, and the rules that say whether a claim held."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.language_model import TINY
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.stacked import trained
from lrenv.trainees.tasks import DataSpec, Task

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import sources
import sources_peft
from classic_policies import SETTINGS
from sources_claims import Check, SourceTable, average, claim_line, judge
from sources_dance import DanceSetup, dance_table, step_lr
from sources_dlr import DLRSetup, dlr_table, hi_dlr
from sources_lc import LCSetup, lc, lc_table
from sources_peft import PEFTSetup, freeze, peft_table
from sources_runs import Runs, expert, kept, peer
from sources_scheduler import scheduler_table

TINY_DECODER = {"context": 8, "total_steps": 20}
DIGITS = Task(
    DataSpec("digits"),
    ConvNetSpec(
        (2, 3),
        batch_norm=True,
        optimizer=OptimizerSpec("sgd", momentum=0.9),
        batch_size=8,
        total_steps=20,
    ),
    seed=0,
)


def rows(**losses: list[float | None]) -> list[dict]:
    return [
        {"method": method, "seed": seed, "val_loss": loss, "test_accuracy": loss}
        for method, own in losses.items()
        for seed, loss in enumerate(own)
    ]


@pytest.mark.parametrize(
    ("one", "other", "wins", "verdict"),
    [
        ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], 3, "held"),
        ([1.0, 2.0, 3.0], [0.5, 2.5, 3.5], 2, "mixed"),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 0, "did not hold"),  # a tie is not ahead
        ([1.0], [None], 1, "held"),  # a run that diverged is behind
        ([None], [1.0], 0, "did not hold"),
        ([], [1.0], 0, "did not hold"),
    ],
)
def test_check_compares_seed_by_seed(one, other, wins, verdict):
    judged = Check("one", "other").judge(rows(one=one, other=other))

    assert (judged["wins"], judged["verdict"]) == (wins, verdict)


def test_more_accuracy_is_better():
    found = rows(one=[0.9, 0.8], other=[0.7, 0.6])

    assert Check("one", "other", "test_accuracy").judge(found)["verdict"] == "held"
    assert Check("one", "other", "val_loss").judge(found)["verdict"] == "did not hold"


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([Check("low", "high"), Check("low", "middle")], "held"),
        ([Check("low", "high"), Check("high", "middle")], "held in part"),
        ([Check("high", "low"), Check("high", "middle")], "did not hold"),
    ],
)
def test_claim_holds_where_all_of_its_checks_do(checks, verdict):
    found = rows(low=[1.0], middle=[2.0], high=[3.0])

    assert judge("A claim", checks, found)["verdict"] == verdict


def test_line_tells_claim_verdict_and_figures():
    found = rows(one=[1.0, 2.0], other=[2.0, 1.0])

    line = claim_line(judge("One beats the other", [Check("one", "other")], found))

    assert line == (
        "One beats the other: mixed. ~ one 1.5 against other 1.5 (val_loss, 1 of 2 seeds)."
    )


def test_average_of_a_diverged_run_is_none():
    assert average([1.0, None]) is None
    assert average([]) is None
    assert average([1.0, 2.0]) == 1.5


def test_run_is_kept(tmp_path, tiny_task):
    runs, method = Runs(tmp_path), expert("constant", "constant", 1e-2)
    first = runs.get(tiny_task, method)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "val_loss": 7.0}))

    assert first["mean_lr"] == pytest.approx(1e-2)
    assert runs.get(tiny_task, method)["val_loss"] == 7.0
    assert runs.get(tiny_task, replace(method, label="other"))["method"] == "other"
    runs.get(replace(tiny_task, seed=4), method)
    runs.get(tiny_task, expert("constant", "constant", 2e-2))
    replace(runs, val_examples=8).get(tiny_task, method)
    assert len(list(tmp_path.iterdir())) == 4


def test_record_is_made_once(tmp_path):
    made = []

    def make() -> dict:
        made.append(1)
        return {"figure": len(made)}

    assert [kept(tmp_path, ["a"], make)["figure"] for _ in range(2)] == [1, 1]
    assert kept(tmp_path, ["b"], make)["figure"] == 2


def test_tuned_method_is_chosen_on_validation_loss(tmp_path, tiny_task):
    grid = [expert("constant", "constant", lr) for lr in (1e-5, 1e-2, 1e4)]

    found = Runs(tmp_path).tuned(tiny_task, grid, seeds=2)

    assert [(row["method"], row["lr"], row["seed"]) for row in found] == [
        ("constant, tuned", 1e-2, 0),
        ("constant, tuned", 1e-2, 1),
    ]


def test_diverged_run_has_no_loss(tmp_path, tiny_task):
    assert Runs(tmp_path).get(tiny_task, expert("constant", "constant", 1e30))["val_loss"] is None


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_lr_counts_multipliers(tmp_path, tiny_task, normalize):
    record = Runs(tmp_path).get(tiny_task, lc(1e-3, normalize))

    # four tensors at the quantiles 0, 1/3, 2/3, 1: multipliers 5, 3, 0.6, 0.2
    assert record["mean_lr"] == pytest.approx(1e-3 if normalize else 2.2e-3)


def test_step_lr_falls_behind_each_part():
    trainee, used = build_trainee(DIGITS), []
    run = step_lr(1.0, 3).start(trainee)
    for _ in range(20):
        used.append(trainee.optimizer.param_groups[0]["lr"])
        run.after_step(torch.zeros(1))

    assert used == pytest.approx([1.0] * 7 + [0.1] * 7 + [0.01] * 6)


@pytest.mark.parametrize("n_groups", [2, 3])
def test_groups_of_hi_dlr_hold_all_parameters(n_groups):
    trainee = build_trainee(DIGITS)
    run = hi_dlr(1e-2, n_groups).start(trainee)
    groups = [g["params"] for g in trainee.optimizer.param_groups]
    trainee.backward()
    trainee.optimizer.step()
    run.after_step(torch.zeros(1))

    assert len(groups) == n_groups
    assert {id(p) for g in groups for p in g} == {id(p) for p in trainee.model.parameters()}
    assert all(p.ndim == 1 for p in groups[0])


@pytest.mark.parametrize("by_influence", [True, False])
def test_choice_fits_the_budget_and_leaves_the_run_as_it_was(by_influence, monkeypatch):
    monkeypatch.setattr(sources_peft, "_PROBED", 2)
    trainee, fresh = build_trainee(DIGITS), build_trainee(DIGITS)

    freeze(trainee, 40, by_influence)

    assert 0 < sum(p.numel() for p in trained(trainee.model)) <= 40
    assert trainee.optimizer.param_groups[0]["params"] == trained(trainee.model)
    for one, other in zip(
        trainee.model.state_dict().values(), fresh.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(trainee.backward(), fresh.backward())


def check_table(table: SourceTable, methods: set[str]) -> None:
    table.show()
    assert {row["method"] for row in table.rows} == methods
    assert all(set(table.columns) <= set(row) for row in table.rows)
    data = json.loads(json.dumps(table.to_json()))
    assert data["line"] == claim_line(data["claim"])
    judged = [entry for claim in (table.claim, table.control) for entry in claim["checks"]]
    assert all(entry["seeds"] > 0 for entry in judged)


def test_table_of_gen_and_hi_dlr(tmp_path):
    table = dlr_table(tmp_path, DLRSetup("digits", DIGITS, peaks=(1e-2, 3e-2)), seeds=2)

    check_table(
        table,
        {
            "GeN",
            "Hi-DLR, 2 groups",
            "Hi-DLR, 3 groups",
            "LR-matched constant",
            "learned",
            "constant, tuned",
            "cosine, tuned",
        },
    )


def test_table_of_layer_dance(tmp_path):
    setup = DanceSetup(
        8, 3, 2, **TINY_DECODER, batch_size=4, peaks=(1e-3, 3e-3), parts=(2,), rounds=2
    )
    table = dance_table(tmp_path, setup, seeds=1)

    check_table(
        table,
        {"Step-LR, tuned", "ALR, tuned", "ALR-Pairwise, tuned", "LR-matched constant", "learned"},
    )
    sizes = {k: 2**20 * v["gradient_mib"] for k, v in (table.further or {}).items()}
    trainee = build_trainee(setup.task)
    layer = 4 * sum(p.numel() for p in trainee.model.layers[0].parameters())
    assert sizes["Training all layers"] - sizes["Training lowest pair"] == pytest.approx(layer)
    assert len({sizes[f"Training {name} pair"] for name in ("lowest", "middle", "highest")}) == 1


def test_pairwise_trains_every_layer_in_turn(tmp_path):
    setup = DanceSetup(8, 3, 2, **TINY_DECODER, batch_size=4)
    runs = Runs(tmp_path)
    alone = runs.get(setup.task, peer("alr", 1e-3))
    assert runs.get(setup.task, peer("alr-pairwise", 1e-3))["val_loss"] != alone["val_loss"]


@pytest.mark.slow  # pretrains a decoder
def test_table_of_auto_peft(tmp_path):
    setup = PEFTSetup(
        width=8, layers=1, context=8, total_steps=20, n_train=50, ranks=(1,), peaks=(1e-3,)
    )
    table = peft_table(tmp_path, setup, seeds=1)

    sizes = {row["method"]: row["parameters"] for row in table.rows}
    budget = sizes["LoRA, rank 1, tuned"]
    names = {f"{how} choice of {budget}, tuned" for how in ("Hi-DLR's", "random")}
    check_table(table, {"all parameters, tuned", "LoRA, rank 1, tuned"} | names)
    assert all(0 < sizes[name] <= budget < sizes["all parameters, tuned"] for name in names)


@pytest.mark.slow  # loads a language model library
def test_table_of_lc(tmp_path):
    setup = LCSetup(TINY, "babyai", total_steps=20, peaks=(1e-3, 1e-2), val_examples=4, answers=2)
    table = lc_table(tmp_path, setup)

    check_table(
        table,
        {
            "LC",
            "LC, mean multiplier 1",
            "constant",
            "cosine",
            "LR-matched constant",
            "constant, tuned",
            "learned",
            "learned, with LC",
        },
    )


@pytest.mark.slow  # searches a tuned expert
def test_table_of_the_learned_scheduler(tmp_path):
    setup = replace(SETTINGS, policies=("linear-bc", "linear-ppo", "all-bc", "all-ppo"))
    table = scheduler_table(tmp_path, 1, replace(setup, total_steps=20))

    names = {f"{kind} → {stage}" for kind in ("linear", "all") for stage in ("BC", "BC + PPO")}
    matched = {f"LR-matched constant of {name}" for name in names}
    experts = {"linear", "cosine", "polynomial", "tuned expert"}
    check_table(table, names | matched | experts)


def test_file_keeps_the_other_tables(tmp_path):
    found = rows(one=[1.0], other=[2.0])
    claim = judge("A claim", [Check("one", "other")], found)
    table = SourceTable("title", "nothing", "nothing", {"val_loss": "loss"}, found, claim, claim)
    path = tmp_path / "sources.json"

    for name in ("lc", "hi-dlr", "lc"):
        sources.keep(path, name, [table])

    data = json.loads(path.read_text())["tables"]
    assert list(data) == ["lc", "hi-dlr"]
    assert data["lc"]["made"][0]["means"]["one"] == {"val_loss": 1.0, "test_accuracy": 1.0}
