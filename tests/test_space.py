"""Search spaces over LRBench's policies."""

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrenv.errors import InputError
from lrenv.policies.lrbench import KINDS, Composition, parse_policy
from lrenv.training.bench.space import BayesianProposals, SearchSpace, proposals

SPACE = SearchSpace(("FIX", "COS"), 1e-4, 1e-1, 100)


@pytest.mark.parametrize("walk", ["grid", "random", "bayesian"])
@pytest.mark.parametrize("segments", [1, 3])
def test_proposals_are_policies_of_the_space(walk, segments):
    space = SearchSpace(tuple(KINDS), 1e-4, 1e-1, 90, segments)
    walked = proposals(space, walk, points=2, seed=0)

    for index in range(25):
        text, drawn = walked.propose(index)
        policy = parse_policy(text)
        parts = policy.policies if segments > 1 else (policy,)
        assert isinstance(policy, Composition) == (segments > 1)
        assert len(parts) == segments
        assert {part.kind for part in parts} <= set(KINDS)
        assert all(policy(step) <= 0.1 * (1 + 1e-5) for step in range(90))
        walked.learn(index, drawn, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 500), st.integers(1, 2), st.booleans())
def test_every_draw_reads_back_from_its_notation(index, steps, segments, mixed):
    space = SearchSpace(tuple(KINDS), 1e-6, 1.0, steps, segments, mixed)

    text, _ = proposals(space, "random", 2, 0).propose(index)

    assert str(parse_policy(text)) == text


def test_a_composition_of_one_kind():
    space = SearchSpace(tuple(KINDS), 1e-4, 1e-1, 100, 3, mixed=False)
    walked = proposals(space, "random", 2, 0)

    kinds = [{p.kind for p in parse_policy(walked.propose(i)[0]).policies} for i in range(20)]

    assert {len(found) for found in kinds} == {1}
    assert len(set.union(*kinds)) > 3


def test_the_grid_has_each_kind_at_each_peak():
    walked = proposals(SPACE, "grid", points=4, seed=0)
    policies = [parse_policy(walked.propose(index)[0]) for index in range(8)]

    assert [policy.kind for policy in policies] == ["FIX"] * 4 + ["COS"] * 4
    assert [p.values["k0"] for p in policies] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1] * 2)
    assert walked.propose(8) is None
    with pytest.raises(InputError, match="Expected at least 2 points, got 1"):
        proposals(SPACE, "grid", points=1, seed=0)


def test_random_draws_depend_on_seed_and_number_alone():
    first, again, other = (proposals(SPACE, "random", 2, seed) for seed in (0, 0, 1))

    assert [first.propose(i) for i in (0, 1, 2)] == [again.propose(i) for i in (2, 1, 0)][::-1]
    assert first.propose(0) != other.propose(0)


def test_bayesian_search_learns_from_trials_before_a_restart():
    """Peaks close to 1e-2 are best; a search that starts with outcomes looks near there."""

    def value(drawn):
        return abs(math.log10(drawn["peak"] / 1e-2))

    past = proposals(SPACE, "random", 2, 0)
    fresh, taught = BayesianProposals(SPACE, 0), BayesianProposals(SPACE, 0)
    for index in range(40):
        drawn = past.propose(index)[1]
        taught.learn(index, drawn, value(drawn))

    far = [sum(value(s.propose(40 + i)[1]) for i in range(8)) for s in (fresh, taught)]
    assert far[1] < 0.5 * far[0]


def test_bayesian_search_goes_on_behind_a_restart_as_without_one():
    def walked(search, indices):
        drawn = []
        for index in indices:
            drawn.append(search.propose(index)[1])
            search.learn(index, drawn[-1], drawn[-1]["peak"])
        return drawn

    whole = walked(BayesianProposals(SPACE, 0), range(14))
    peaks = {drawn["peak"] for drawn in whole}
    restarted = BayesianProposals(SPACE, 0)
    for index, drawn in enumerate(whole[:12]):
        restarted.learn(index, drawn, drawn["peak"])

    assert len(peaks) == 14
    assert walked(restarted, range(12, 14)) == whole[12:]


def test_a_failed_trial_is_told_as_failed():
    search = BayesianProposals(SPACE, 0)
    search.propose(0)
    search.learn(0, {}, None)

    assert [t.state for t in search._study.trials] == [optuna.trial.TrialState.FAIL]


@pytest.mark.parametrize("restarted", [False, True])
def test_bayesian_search_keeps_away_from_what_diverges(restarted):
    space, told = SearchSpace(("FIX",), 1e-5, 1.0, 100), []
    search = BayesianProposals(space, 0)
    for index in range(40):
        if restarted:
            search = BayesianProposals(space, 0)
            for earlier in told:
                search.learn(*earlier)
        text, drawn = search.propose(index)
        lr = parse_policy(text)(0)
        told.append((index, drawn, math.inf if lr > 1e-2 else abs(math.log10(lr) + 3)))
        search.learn(*told[-1])

    assert sum(value == math.inf for _, _, value in told[20:]) < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("FIX", "HAT")}, "Expected policies among FIX, .*; got HAT"),
        ({"kinds": ()}, "got none"),
        ({"low": 0.1}, "Expected a range of LRs from low to a higher high, got 0.1 to 0.1"),
        ({"low": 0.0}, "got 0 to 0.1"),
        ({"high": float("inf")}, "got 0.0001 to inf"),
        ({"segments": 51}, "Expected from 1 segment to 50, half the steps of the run; got 51"),
    ],
)
def test_unusable_spaces(change, message):
    values = {"kinds": ("FIX",), "low": 1e-4, "high": 0.1, "total_steps": 100, **change}
    with pytest.raises(InputError, match=message):
        SearchSpace(**values)
