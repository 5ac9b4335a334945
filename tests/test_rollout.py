"""Rollouts of a task, and the labels and signals that go with them."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lrenv.action import MAX_CHANGE
from lrenv.controller import Controller
from lrenv.decisions import DecisionPlan
from lrenv.observation import FEATURES
from lrenv.policies.network import Head
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.tasks import load_data
from lrenv.training.rollout import (
    VAL_COLUMNS,
    VALIDATE_EVERY,
    NetworkChoice,
    drop_signals,
    recovery_label,
    roll_out,
)
from lrenv.traits import OptimizerTraits

COLUMN = {name: i for i, name in enumerate(FEATURES)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waver(token: Tensor, controller: Controller) -> Tensor:
    """Raise the LR of the first run and lower it in the others, by and by less."""
    sign = torch.ones(len(token)).index_fill(0, torch.arange(1, len(token)), -1.0)
    return sign / (controller.step + 1)


def test_signals_are_dropped_for_a_share_of_the_runs():
    mask = drop_signals(20_000, generator())

    no_val = mask[:, VAL_COLUMNS] == 0
    unknown = mask[:, [COLUMN[f"optimizer_{k}"] for k in ("known", "adaptive", "momentum")]] == 0
    no_epochs = mask[:, [COLUMN[name] for name in ("epochs_known", "epochs", "epoch")]] == 0
    for dropped, share in [(no_val, 0.5), (no_epochs, 0.25), (unknown, 0.1)]:
        assert torch.equal(dropped.all(1), dropped.any(1))
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.02)
    some = ("val_", "optimizer_", "epoch")
    others = [i for i, name in enumerate(FEATURES) if not name.startswith(some)]
    assert mask[:, others].min() == 1
    assert len(VAL_COLUMNS) == 3


def test_a_rollout_knows_its_epochs(tiny_task):
    token = roll_out(tiny_task, 1, waver).tokens[0, 0]

    examples, spec = len(load_data(tiny_task.data).x_train), tiny_task.spec
    epochs = spec.total_steps * spec.batch_size / examples
    assert token[COLUMN["epochs_known"]] == 1
    assert token[COLUMN["epochs"]].item() == pytest.approx(math.log(epochs))


def test_a_rollout_keeps_every_decision(tiny_task):
    rollout = roll_out(tiny_task, 3, waver)
    plan = Controller(tiny_task.spec.total_steps, OptimizerTraits(*torch.zeros(3, 1))).plan

    n = plan.n_decisions
    assert rollout.tokens.shape == (3, n, len(FEATURES))
    assert rollout.actions.shape == rollout.lrs.shape == (3, n)
    assert rollout.final.shape == (3,)
    steps = torch.tensor(plan.ends[plan.lead - 1 : -1])
    torch.testing.assert_close(rollout.actions[0], 1.0 / (steps + 1))
    changes = rollout.lrs.log().diff(dim=1)
    torch.testing.assert_close(changes, MAX_CHANGE * rollout.actions[:, 1:], rtol=0, atol=1e-4)
    assert rollout.final[0] < 0.98 * rollout.final[1]


def test_runs_of_a_group_share_weights_and_batches(tiny_task):
    rollout = roll_out(tiny_task, 3, waver)

    assert torch.equal(rollout.tokens[1], rollout.tokens[2])
    assert rollout.final[1] == rollout.final[2]
    torch.testing.assert_close(rollout.tokens[0, 0], rollout.tokens[1, 0])
    again = roll_out(tiny_task, 3, waver)
    assert torch.equal(again.tokens, rollout.tokens)
    assert torch.equal(again.final, rollout.final)


def test_the_validation_loss_comes_every_few_decisions(tiny_task):
    given = roll_out(tiny_task, 1, waver).tokens[0, :, COLUMN["val_given"]]

    expected = [float(i % VALIDATE_EVERY == 0) for i in range(len(given))]
    assert given.tolist() == expected


def test_validation_losses_that_no_run_is_told_are_not_computed(tiny_task, monkeypatch):
    def hold(token: Tensor, controller: Controller) -> Tensor:
        return torch.zeros(2)

    mask = torch.ones(2, len(FEATURES))
    mask[0, VAL_COLUMNS] = 0.0
    told_one = roll_out(tiny_task, 2, hold, mask)
    evaluate, computed = BatchedTrainee.evaluate, []

    def watch(trainee: BatchedTrainee, *args: object) -> object:
        computed.append(args)
        return evaluate(trainee, *args)

    monkeypatch.setattr(BatchedTrainee, "evaluate", watch)
    told_none = roll_out(tiny_task, 2, hold, mask[:1].expand(2, -1))

    assert computed == [("val",)]  # at the end
    assert torch.equal(told_none.tokens[1], told_one.tokens[0])
    assert torch.equal(told_none.final, told_one.final)


def test_masked_signals_reach_neither_policy_nor_record(tiny_task):
    mask = torch.ones(2, len(FEATURES))
    mask[0, VAL_COLUMNS] = 0.0
    seen = []

    def watch(token: Tensor, controller: Controller) -> Tensor:
        seen.append(token)
        return torch.zeros(2)

    tokens = roll_out(tiny_task, 2, watch, mask).tokens

    assert torch.equal(torch.stack(seen, 1), tokens)
    assert tokens[0][:, VAL_COLUMNS].abs().max() == 0
    assert tokens[1][:, VAL_COLUMNS].abs().max() > 0
    others = [i for i in range(len(FEATURES)) if i not in VAL_COLUMNS]
    assert torch.equal(tokens[0][:, others], tokens[1][:, others])


def test_a_diverged_run_ends_with_a_loss_that_shows_it(tiny_task):
    rollout = roll_out(tiny_task, 1, lambda token, controller: torch.full((1,), 1.0))

    assert not rollout.final.item() < 1e3
    assert rollout.tokens.isfinite().all()


def test_a_network_chooses_by_all_tokens_so_far(tiny_task):
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES)).eval()

    rollout = roll_out(tiny_task, 2, NetworkChoice(actor))

    with torch.no_grad():
        torch.testing.assert_close(rollout.actions, actor(rollout.tokens), rtol=0, atol=1e-5)
    assert not rollout.actions.requires_grad


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_a_network_explores_with_noise_of_a_deviation_and_a_memory(memory):
    torch.manual_seed(0)
    actor, token = Head("scale-free", len(FEATURES)).eval(), torch.randn(1, len(FEATURES))
    many = token.expand(20_000, -1)

    def noise(seed: int) -> Tensor:
        still, noisy = NetworkChoice(actor), NetworkChoice(actor, 0.2, memory, generator(seed))
        rows = [noisy(many, None) - still(token, None) for _ in range(3)]
        return torch.stack(rows)

    rows = noise(0)

    assert rows.mean(1).tolist() == pytest.approx([0.0] * 3, abs=0.01)
    assert rows.std(1).tolist() == pytest.approx([0.2] * 3, rel=0.03)
    correlations = torch.corrcoef(rows)
    assert correlations[0].tolist() == pytest.approx([1.0, memory, memory**2], abs=0.03)
    assert torch.allclose(rows[:, :10_000], -rows[:, 10_000:], atol=1e-6)
    assert torch.equal(rows, noise(0))
    assert not torch.equal(rows, noise(1))


@pytest.mark.parametrize(
    ("lr", "label"),
    [(0.25, 0.0), (0.25 / math.e, 0.5), (0.25 * math.e, -0.5), (1e-6, 1.0), (1e6, -1.0)],
)
def test_a_recovery_label_leads_to_the_mean_lr_of_the_coming_interval(lr, label):
    rates = torch.tensor([9.0, 9.0, 0.1, 0.4, 9.0])
    controller = SimpleNamespace(
        step=2, plan=DecisionPlan(5, (1, 2, 4, 5), 0, 1), lr=torch.tensor([lr])
    )

    assert recovery_label(rates.log(), controller).item() == pytest.approx(label, abs=1e-5)


def test_recovery_labels_bring_every_run_to_the_expert(tiny_task):
    total = tiny_task.spec.total_steps
    log_schedule = torch.linspace(math.log(0.1), math.log(0.001), total)

    def recover(token: Tensor, controller: Controller) -> Tensor:
        return recovery_label(log_schedule, controller)

    rollout = roll_out(tiny_task, 1, recover)

    plan = Controller(total, OptimizerTraits(*torch.zeros(3, 1))).plan
    intervals = [plan.interval(i) for i in range(plan.lead, len(plan.ends))]
    expected = [log_schedule[a:b].exp().mean().item() for a, b in intervals]
    assert rollout.lrs[0, 6:].tolist() == pytest.approx(expected[6:], rel=1e-3)
