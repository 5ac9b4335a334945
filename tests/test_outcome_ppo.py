"""PPO on the outcome of whole runs."""

import math
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrenv.decisions import MAX_DECISIONS
from lrenv.observation import FEATURES
from lrenv.policies.network import Head
from lrenv.training.expert_search import search_experts
from lrenv.training.outcome_ppo import (
    Batch,
    OutcomePPO,
    advantages,
    centre_in_groups,
    evaluate_actor,
    join_groups,
    log_changes,
    log_ratios,
)
from lrenv.training.rollout import VAL_COLUMNS, NetworkChoice, Rollout, roll_out
from lrenv.training.settings import GeneralistSettings

SETTINGS = GeneralistSettings(group=4, critic_warmup=1, epochs=2, minibatch=64)


def new_ppo(**changes: object) -> OutcomePPO:
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES))
    return OutcomePPO(actor, replace(SETTINGS, **changes), MagicMock())


def weights(head: Head) -> Tensor:
    return torch.nn.utils.parameters_to_vector(head.parameters()).detach().clone()


def test_log_ratios_have_a_floor_under_losses():
    e = math.e
    final = torch.tensor([2.0, 2 * e, 2 / e, 1e-9, 0.0, math.inf, math.nan])

    least = math.log(0.01 / 2)
    expected = [0.0, 1.0, -1.0, least, least, math.inf, math.inf]
    assert log_ratios(final, 2.0).tolist() == pytest.approx(expected, abs=1e-6)
    assert log_ratios(torch.tensor([0.02, 1e-5]), 1e-4).tolist() == pytest.approx(
        [math.log(2), 0.0]
    )


def test_advantages_by_hand():
    values = torch.tensor([[0.1, 0.2, 0.3, 7.0], [0.5, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    returns = torch.tensor([1.0, -1.0, 0.0])

    found = advantages(values, returns, mask, 0.5)

    expected = [
        [0.1 + 0.5 * 0.45, 0.1 + 0.5 * 0.7, 0.7, 0.0],
        [-1.5, 0.0, 0.0, 0.0],
        [1.0 + 0.5 * 0.5, 1.0 - 0.5 * 1.0, 1.0 - 0.5 * 4.0, -4.0],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(-2, 2), st.integers(0, 3))
def test_advantages_at_the_ends_of_lambda(values, outcome, padding):
    n = len(values)
    rows = torch.tensor([values + [1.0] * padding], dtype=torch.float64)
    mask = torch.tensor([[1.0] * n + [0.0] * padding], dtype=torch.float64)
    returns = torch.tensor([outcome], dtype=torch.float64)

    whole, steps = (advantages(rows, returns, mask, lam)[0] for lam in (1.0, 0.0))

    following = [*values[1:], outcome]
    assert whole[:n].tolist() == pytest.approx([outcome - v for v in values])
    assert steps[:n].tolist() == pytest.approx(
        [b - a for a, b in zip(values, following, strict=True)]
    )
    assert whole[n:].tolist() == steps[n:].tolist() == [0.0] * padding


def test_advantages_are_centred_and_scaled_in_groups():
    gains = torch.tensor([[3.0, 0.0], [10.0, 5.0], [1.0, 2.0], [10.0, 5.001]])
    group = torch.tensor([0, 1, 0, 1])

    found = centre_in_groups(gains, group, floor=0.1, typical=0.25)

    big, small = 1 / (0.25 * 1.0) ** 0.5, 0.0005 / (0.25 * 0.1) ** 0.5
    expected = [[big, -big], [0.0, -small], [-big, big], [0.0, small]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_scale_of_a_group_does_not_depend_on_the_padding():
    gains = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    padded = torch.cat([gains, torch.zeros(2, 6)], 1)

    found = centre_in_groups(padded, torch.zeros(2))

    torch.testing.assert_close(found[:, :2], centre_in_groups(gains, torch.zeros(2)))


def test_changes_of_losses_by_hand():
    before = torch.tensor([[1.0, 0.5], [math.nan, math.inf], [0.001, 2.0]])
    final = torch.tensor([[math.e, 0.5], [1.0, math.nan], [0.002, math.inf]])

    # -2 for one that diverged before and 0 for both, 0 below the floor.
    expected = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(log_changes(final, before), expected)


def test_groups_are_joined_and_centred():
    def rollout(t: int, final: list[float]) -> Rollout:
        n = len(final)
        return Rollout(
            torch.full((n, t, 5), float(t)),
            torch.full((n, t), 0.1 * t),
            torch.ones(n, t),
            torch.tensor(final),
        )

    batch = join_groups([rollout(3, [1.0, math.e]), rollout(2, [2.0, math.nan, 2.0])])

    assert batch.tokens.shape == (5, MAX_DECISIONS, 5)
    assert batch.mask.sum(1).tolist() == [3, 3, 2, 2, 2]
    assert batch.group.tolist() == [0, 0, 1, 1, 1]
    assert batch.actions.sum(1).tolist() == pytest.approx([0.9, 0.9, 0.4, 0.4, 0.4])
    assert batch.gap.tolist() == pytest.approx([0.0, 1.0, 0.0, 2.0, 0.0], abs=1e-6)
    expected = [0.5, -0.5, 2 / 3, -4 / 3, 2 / 3]
    assert batch.returns.tolist() == pytest.approx(expected, abs=1e-6)
    assert (batch.tokens * (1 - batch.mask)[..., None]).abs().max() == 0
    diverged = join_groups([rollout(2, [math.nan, math.inf])])
    assert diverged.gap.tolist() == [2.0, 2.0]
    assert diverged.returns.tolist() == [0.0, 0.0]


def test_the_actor_learns_after_the_warm_up_of_the_critic(tiny_task):
    ppo = new_ppo()
    actor, critic, clone = weights(ppo.actor), weights(ppo.critic), weights(ppo._clone)

    ppo.update([tiny_task])
    assert torch.equal(weights(ppo.actor), actor)
    assert not torch.equal(weights(ppo.critic), critic)

    ppo.update([tiny_task])
    assert not torch.equal(weights(ppo.actor), actor)
    assert torch.equal(weights(ppo._clone), clone)
    assert ppo.updates == 2


@pytest.mark.parametrize(("left", "share"), [(1.0, 1.0), (0.5, 0.55), (0.0, 0.1)])
def test_the_lr_of_the_actor_falls_with_the_budget(tiny_task, left, share):
    ppo = new_ppo(actor_lr=1e-3)
    ppo.update([tiny_task], left)

    assert [g["lr"] for g in ppo._actor_opt.param_groups] == [pytest.approx(share * 1e-3)]
    assert [g["lr"] for g in ppo._critic_opt.param_groups] == [SETTINGS.critic_lr]


def test_the_average_follows_the_actor(tiny_task):
    ppo = new_ppo(critic_warmup=0, average_decay=0.75)
    expected = weights(ppo.actor)
    for _ in range(2):
        ppo.update([tiny_task])
        expected = 0.75 * expected + 0.25 * weights(ppo.actor)

    torch.testing.assert_close(weights(ppo.average), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(weights(ppo.average), weights(ppo.actor))


def test_an_update_returns_the_mean_gap_to_the_best_runs(tiny_task):
    ppo = new_ppo()
    batch = ppo._collect([tiny_task], torch.Generator().manual_seed(0))

    assert ppo.update([tiny_task]) == pytest.approx(batch.gap.mean().item(), abs=1e-6)
    written = {call.args[0]: call.args[1:] for call in ppo._writer.add_scalar.call_args_list}
    assert written["charts/gap"] == (pytest.approx(batch.gap.mean().item()), 1)
    assert set(written) == {"charts/gap", "charts/worst_share", "losses/value"}


def test_runs_of_a_group_are_given_the_same_signals(tiny_task):
    batch = new_ppo(group=8)._collect([tiny_task] * 2, torch.Generator().manual_seed(0))

    for group in batch.tokens.split(8):
        given = group[:, :, VAL_COLUMNS[0]]
        assert torch.equal(given, given[:1].expand_as(given))
        torch.testing.assert_close(group[:, 0], group[:1, 0].expand_as(group[:, 0]))
    assert batch.actions.std(0)[0] > 0.05


def toy_batch(actor: Head, seed: int, sign: float) -> Batch:
    """One-decision runs, whose return is ``sign`` times what the action has above the mean."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 1, len(FEATURES), generator=draw).expand(64, 3, -1)
    with torch.no_grad():
        noise = 0.125 * torch.randn(64, 3, generator=draw)
        actions = actor(tokens) + noise
    mask = torch.tensor([1.0, 0.0, 0.0]).expand(64, -1)
    returns = sign * (noise[:, 0] - noise[:, 0].mean())
    return Batch(tokens, actions, mask, returns, torch.zeros(64), -returns)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_actions_of_better_runs_become_likelier(monkeypatch, sign):
    ppo = new_ppo(critic_warmup=0, kl_clone=0.0, target_kl=1.0, actor_lr=2e-4)
    token = torch.randn(200, 1, len(FEATURES), generator=torch.Generator().manual_seed(99))
    before = ppo.actor(token).mean().item()
    monkeypatch.setattr(ppo, "_collect", lambda *_: toy_batch(ppo.actor, ppo.updates, sign))

    for _ in range(15):
        ppo.update([])

    assert sign * (ppo.actor(token).mean().item() - before) > 0.05


def test_the_kl_term_holds_the_actor_at_the_clone(monkeypatch):
    moved = []
    for weight in (0.0, 100.0):
        ppo = new_ppo(critic_warmup=0, kl_clone=weight, target_kl=1.0, actor_lr=2e-4)
        tokens = toy_batch(ppo.actor, 0, 1.0).tokens
        monkeypatch.setattr(ppo, "_collect", lambda *_, p=ppo: toy_batch(p.actor, p.updates, 1.0))
        for _ in range(10):
            ppo.update([])
        with torch.no_grad():
            moved.append((ppo.actor(tokens) - ppo._clone(tokens))[:, 0].abs().mean().item())

    assert moved[1] < 0.3 * moved[0]


def test_a_change_of_likelihood_is_clipped(monkeypatch):
    """However long one batch is learned from, its ratios stay about within the clip range."""
    ppo = new_ppo(critic_warmup=0, kl_clone=0.0, target_kl=1e9, epochs=60, clip=0.2, actor_lr=2e-4)
    batch = toy_batch(ppo.actor, 0, 1.0)
    with torch.no_grad():
        old = ppo.actor(batch.tokens)
    monkeypatch.setattr(ppo, "_collect", lambda *_: batch)

    ppo.update([])

    with torch.no_grad():
        new = ppo.actor(batch.tokens)
    errors = [(batch.actions - mean)[:, 0].square() for mean in (old, new)]
    log_ratio = (errors[0] - errors[1]) / (2 * SETTINGS.action_std**2)
    assert 0.05 < log_ratio.abs().median() < 0.6


def test_an_update_ends_at_the_target_kl(monkeypatch):
    counts = {}
    for target in (-1.0, 1e9):
        ppo = new_ppo(critic_warmup=0, epochs=3, target_kl=target)
        parts = [toy_batch(ppo.actor, seed, 1.0) for seed in (0, 1)]
        batch = Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in vars(parts[0])))
        monkeypatch.setattr(ppo, "_collect", lambda *_, b=batch: b)
        ppo.update([])
        states = ppo._actor_opt.state_dict()["state"].values()
        counts[target] = {int(state["step"]) for state in states}

    assert counts == {-1.0: {1}, 1e9: {6}}


def test_state_goes_on_where_it_stopped(tiny_task, tmp_path):
    whole = new_ppo()
    for _ in range(2):
        whole.update([tiny_task])
    whole.save(tmp_path / "ppo.pt", spent=1.5)
    resumed = OutcomePPO(Head("scale-free", len(FEATURES)), SETTINGS, MagicMock())
    state = resumed.load(tmp_path / "ppo.pt")
    for ppo in (whole, resumed):
        ppo.update([tiny_task])

    assert state["spent"] == 1.5
    assert resumed.updates == 3
    for name in ("actor", "critic", "average", "_clone"):
        assert torch.equal(weights(getattr(resumed, name)), weights(getattr(whole, name)))


def test_an_actor_is_evaluated_without_and_with_a_validation_loss(tiny_task):
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES))
    other = replace(tiny_task, seed=9)

    ratios = evaluate_actor(actor, [tiny_task, other])

    mask = torch.ones(1, len(FEATURES))
    with_val = roll_out(other, 1, NetworkChoice(actor), mask).final
    mask[0, VAL_COLUMNS] = 0.0
    without = roll_out(other, 1, NetworkChoice(actor), mask).final
    expected = torch.log(torch.cat([without, with_val]) / search_experts(other).reference)
    assert ratios.shape == (2, 2)
    torch.testing.assert_close(ratios[1], expected, rtol=1e-3, atol=1e-4)
    assert ratios[1, 0] != ratios[1, 1]
