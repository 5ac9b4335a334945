"""When decisions fall."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrenv.decisions import (
    CLASSIC_INTERVAL,
    MAX_DECISIONS,
    classic_plan,
    equal_steps,
    scale_free_plan,
)
from lrenv.errors import InputError


@given(st.integers(4, 10**7))
def test_scale_free_plan_cuts_a_run_of_any_length(total_steps):
    plan = scale_free_plan(total_steps)

    assert plan.ends[:3] == (1, 2, 3)
    assert plan.ends[-1] == total_steps
    assert all(a < b for a, b in pairwise(plan.ends))
    assert 1 <= plan.n_decisions <= MAX_DECISIONS
    assert plan.n_decisions == len(plan.ends) - plan.lead


@given(st.integers(4, 10**7))
def test_decisions_are_closer_together_at_the_start(total_steps):
    gaps = [b - a for a, b in pairwise(scale_free_plan(total_steps).ends)]

    assert all(later >= earlier - 1 for earlier, later in pairwise(gaps))
    assert gaps[0] == min(gaps)


def test_a_long_run_has_all_decisions_at_squares():
    plan = scale_free_plan(3 + 64_000)

    assert plan.n_decisions == MAX_DECISIONS == 80
    assert plan.ends[3:] == tuple(3 + 10 * i * i for i in range(1, 81))


@given(st.integers(2, 10**5))
def test_classic_plan_has_equal_intervals(total_steps):
    plan = classic_plan(total_steps)
    gaps = [b - a for a, b in pairwise((0, *plan.ends))]

    assert gaps[0] == 1
    assert set(gaps[1:-1]) <= {CLASSIC_INTERVAL}
    assert 1 <= gaps[-1] <= CLASSIC_INTERVAL
    assert plan.ends[-1] == total_steps
    assert plan.measured == CLASSIC_INTERVAL


@given(st.integers(4, 10**5), st.sampled_from([classic_plan, scale_free_plan]))
def test_intervals_join(total_steps, make):
    plan = make(total_steps)
    intervals = [plan.interval(i) for i in range(len(plan.ends))]

    assert intervals[0][0] == 0
    assert [end for _, end in intervals[:-1]] == [start for start, _ in intervals[1:]]
    assert intervals[-1][1] == total_steps


@pytest.mark.parametrize("value", [0, -3, True, 100.0, "100", None, 3])
def test_scale_free_plan_refuses(value):
    message = rf"whole number of at least 4 optimizer steps, got {value!r}; pass the number"
    with pytest.raises(InputError, match=message):
        scale_free_plan(value)


@pytest.mark.parametrize("value", [0, -3, True, 100.0, 1])
def test_classic_plan_refuses(value):
    with pytest.raises(InputError, match=rf"at least 2 optimizer steps, got {value!r};"):
        classic_plan(value)


@given(st.integers(4, 10**4), st.sampled_from([classic_plan, scale_free_plan]), st.data())
def test_next_end_is_the_end_of_the_interval_of_a_step(total_steps, make, data):
    plan = make(total_steps)
    step = data.draw(st.integers(0, total_steps - 1))
    start, end = next((a, b) for a, b in map(plan.interval, range(len(plan.ends))) if a <= step < b)

    assert plan.next_end(step) == end
    assert plan.next_end(start) == end
    assert plan.next_end(end - 1) == end


@pytest.mark.parametrize("make", [classic_plan, scale_free_plan])
def test_a_number_of_numpy_is_a_whole_number(make):
    plan = make(np.int64(50))

    assert plan == make(50)
    assert type(plan.total_steps) is int


def test_equal_steps_end_with_the_run() -> None:
    assert equal_steps(100, 4) == [25, 50, 75, 100]
    assert equal_steps(10, 4) == [3, 5, 8, 10]
    assert equal_steps(3, 50) == [1, 2, 3]
