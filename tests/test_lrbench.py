"""LRBench's policies: their values by hand, their notation there and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrenv.errors import InputError
from lrenv.policies.lrbench import (
    KINDS,
    ChangeOnPlateau,
    Composition,
    LRPolicy,
    parse_policy,
    policy_lr,
)

K = {"k0": 0.1, "k1": 0.9}
BY_HAND = {
    "FIX": ({"k0": 0.5}, {0: 0.5, 999: 0.5}),
    "STEP": ({"k0": 0.8, "gamma": 0.5, "l": 10}, {0: 0.8, 9: 0.8, 10: 0.4, 25: 0.2}),
    "NSTEP": (
        {"k0": 0.8, "gamma": 0.5, "l": (10, 13)},
        {9: 0.8, 10: 0.4, 12: 0.4, 13: 0.2, 99: 0.2},
    ),
    "EXP": ({"k0": 0.8, "gamma": 0.5}, {0: 0.8, 3: 0.1}),
    "INV": ({"k0": 0.8, "gamma": 1.0, "p": 2}, {0: 0.8, 1: 0.2}),
    "POLY": ({**K, "p": 2, "l": 10}, {0: 0.9, 5: 0.3, 10: 0.1, 30: 0.1}),
    "SIG": ({"k0": 0.8, "gamma": 1.0, "l": 10}, {10: 0.4, 1000: 0.8, 9: 0.8 / (1 + math.e)}),
    "TRI": ({**K, "l": 10}, {0: 0.1, 5: 0.5, 10: 0.9, 20: 0.1, 25: 0.5}),
    "TRI2": ({**K, "l": 10}, {10: 0.9, 30: 0.5, 50: 0.3}),
    "TRIEXP": ({**K, "l": 10, "gamma": 0.9}, {0: 0.1, 10: 0.1 + 0.8 * 0.9**10}),
    "SIN": ({**K, "l": 10}, {0: 0.1, 10: 0.9, 5: 0.1 + 0.8 * math.sqrt(0.5), 20: 0.1}),
    "SIN2": ({**K, "l": 10}, {10: 0.9, 30: 0.5}),
    "SINEXP": ({**K, "l": 10, "gamma": 0.9}, {30: 0.1 + 0.8 * 0.9**30}),
    "COS": ({**K, "l": 10}, {0: 0.9, 5: 0.5, 10: 0.1, 20: 0.9}),
    "COS2": ({**K, "l": 10}, {0: 0.9, 20: 0.5, 40: 0.3}),
    "COSEXP": ({**K, "l": 10, "gamma": 0.9}, {20: 0.1 + 0.8 * 0.9**20}),
    "RSW": ({**K, "l": 10}, {0: 0.9, 5: 0.5, 9: 0.18, 10: 0.9}),
    "RSW2": ({**K, "l": 10}, {0: 0.9, 10: 0.5, 25: 0.2}),
    "RSWEXP": ({**K, "l": 10, "gamma": 0.9}, {10: 0.1 + 0.8 * 0.9**10}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_by_hand(kind):
    values, expected = BY_HAND[kind]
    policy = LRPolicy(kind, values)
    # backwards too: nothing depends on the order of the questions
    for step, lr in [*expected.items(), *reversed(expected.items())]:
        assert policy(step) == pytest.approx(lr, abs=1e-12)


@pytest.mark.parametrize("kind", [k for k, names in KINDS.items() if "k1" in names])
def test_k0_and_k1_may_change_places(kind):
    values = BY_HAND[kind][0]
    swapped = {**values, "k0": values["k1"], "k1": values["k0"]}
    for step in range(40):
        assert LRPolicy(kind, swapped)(step) == LRPolicy(kind, values)(step)


@pytest.mark.parametrize("kind", KINDS)
def test_notation_there_and_back(kind):
    policy = LRPolicy(kind, BY_HAND[kind][0])
    again = parse_policy(str(policy))
    assert again == policy
    assert str(again) == str(policy)


def test_the_source_s_own_examples():
    text = "k0_0.001+k1_0.006+lrPolicy_TRI+l_2000"
    assert str(parse_policy(text)) == text
    assert parse_policy(text)(2000) == pytest.approx(0.006)
    assert parse_policy("k1_6e-3+k0_1e-3+lrPolicy_TRI+l_2000") == parse_policy(text)
    assert parse_policy("k0_1e+0+lrPolicy_FIX")(7) == 1.0
    assert parse_policy("k0_1E-5+lrPolicy_FIX")(7) == 1e-5
    falling = parse_policy("k0_0.1+gamma_-0.5+lrPolicy_SIG+l_10")
    assert [falling(t) for t in (0, 10, 99)] == pytest.approx([0.1, 0.05, 0.0], abs=1e-3)
    exact = "k0_0.123456789+lrPolicy_FIX"
    assert str(parse_policy(exact)) == exact
    steps = parse_policy("k0_0.1+gamma_0.1+lrPolicy_NSTEP+l_30+60+80")
    assert [steps(t) for t in (29, 30, 60, 80)] == pytest.approx([0.1, 0.01, 1e-3, 1e-4])


def test_a_composition_starts_each_policy_anew():
    text = "k0_0.01+k1_0.06+lrPolicy_TRI+l_10-k0_0.001+k1_0.006+lrPolicy_COS+l_10-AT-20"
    policy = parse_policy(text)
    assert str(policy) == text
    assert isinstance(policy, Composition)
    lrs = {19: 0.015, 20: 0.006, 30: 0.001, 10: 0.06, 0: 0.01}
    assert [policy(t) for t in lrs] == pytest.approx(list(lrs.values()))
    low = parse_policy("k0_1e-05+lrPolicy_FIX-k0_2e-05+lrPolicy_FIX-AT-3")
    assert [low(2), low(3)] == [1e-5, 2e-5]


@given(
    kind=st.sampled_from(sorted(KINDS)),
    k0=st.floats(1e-6, 1),
    k1=st.floats(1e-6, 1),
    gamma=st.floats(0.5, 1),
    step=st.integers(0, 5000),
)
def test_lrs_stay_between_zero_and_the_larger_k(kind, k0, k1, gamma, step):
    values = {"k0": k0, "k1": k1, "gamma": gamma, "p": 1.5, "l": 100}
    policy = LRPolicy(kind, {name: values[name] for name in KINDS[kind]})
    top = max(k0, k1) if "k1" in KINDS[kind] else k0
    assert 0 <= policy(step) <= top * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k0_0.1+lrPolicy_NOPE", "Expected lrPolicy among FIX, STEP.*; got 'NOPE'"),
        ("k0_0.1", "Expected lrPolicy among FIX.*; got ''"),
        ("lrPolicy_TRI+k0_0.1+l_5", "Expected k0, k1, l for TRI, got k0, l"),
        ("k0_x+lrPolicy_FIX", "Expected a number, got 'x' in"),
        ("k0+lrPolicy_FIX", "Expected name_value, joined by \\+, got 'k0'"),
        ("k0_-1+lrPolicy_FIX", "Expected k0 of at least 0, .*; got -1 for FIX"),
        ("k0_0.1+k1_0.2+lrPolicy_TRI+l_10+20", "only for NSTEP several, .*; got 10\\+20 for TRI"),
        ("k0_0.1+k0_0.2+lrPolicy_FIX", "each name once, got 'k0' again"),
        ("k0_0.1+gamma_0.1+l_0+lrPolicy_STEP", "Expected l of at least 1"),
        ("k0_0.1+gamma_0.1+lrPolicy_NSTEP+l_30+20", "several, rising; got 30\\+20"),
        ("k0_1+lrPolicy_FIX-k0_2+lrPolicy_FIX", "Expected -AT- and boundaries"),
        ("k0_1+lrPolicy_FIX-k0_2+lrPolicy_FIX-AT-5+9", "Expected 1 rising boundaries for 2"),
        ("k0_1+lrPolicy_FIX-k0_2+lrPolicy_FIX-AT-9.7", "Expected whole steps behind -AT-"),
        ("k0_1+lrPolicy_FIX-k0_2+lrPolicy_FIX-AT-inf", "Expected whole steps behind -AT-"),
        ("k0_nan+lrPolicy_FIX", "Expected k0 of at least 0"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_policy(text)


def test_a_policy_drives_a_torch_optimizer():
    params = [{"params": [torch.zeros(1)], "lr": 0.2}, {"params": [torch.zeros(1)], "lr": 0.02}]
    optimizer = torch.optim.SGD(params)
    policy = parse_policy("k0_0.01+k1_0.06+lrPolicy_TRI+l_4")
    scheduler = policy_lr(optimizer, policy)
    for step in range(12):
        assert scheduler.get_last_lr() == pytest.approx([policy(step), policy(step) / 10])
        optimizer.step()
        scheduler.step()


def test_the_next_policy_takes_over_on_a_plateau():
    policies = [parse_policy(f"k0_{k}+gamma_0.5+lrPolicy_EXP") for k in (0.4, 0.2, 0.1)]
    change = ChangeOnPlateau(policies, patience=2)
    lrs, metrics = [], [1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]
    for step, metric in enumerate(metrics, 1):
        change.report(step, metric)
        lrs.append(change(step))
        again = ChangeOnPlateau(policies, patience=2)
        again.load_state_dict(change.state_dict())
        change = again
    # on at step 4, and at step 7; there is no fourth
    assert lrs == pytest.approx([0.2, 0.1, 0.05, 0.2, 0.1, 0.05, 0.1, 0.05, 0.025])
    falling = ChangeOnPlateau(policies, patience=2, threshold=0.1)
    for step, metric in enumerate([-1.0, -0.95, -1.05, -1.2], 1):
        falling.report(step, metric)
    assert (falling.place, falling._best) == (1, -1.2)
    with pytest.raises(InputError, match="got 0 and 5"):
        ChangeOnPlateau([])


@pytest.mark.parametrize("kind", ["EXP", "STEP"])
def test_a_policy_that_grows_without_bound_ends_at_infinity(kind):
    length = {"l": 1} if kind == "STEP" else {}
    assert LRPolicy(kind, {"k0": 0.1, "gamma": 2.0, **length})(5000) == math.inf
