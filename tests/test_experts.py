"""Expert schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrenv.errors import InputError
from lrenv.policies.experts import EXPERTS, TUNED_KINDS, get_expert, schedule

names = st.sampled_from(sorted(EXPERTS))
lengths = st.integers(1, 3000)
peaks = st.floats(1e-8, 1e3)


def test_the_tuned_expert_is_searched_among_experts():
    assert set(TUNED_KINDS) <= set(EXPERTS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [2.0] * 10),
        ("linear", [1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]),
        ("polynomial", [1.0, 2.0, *(2 * (1 - k / 8) ** 2 for k in range(8))]),
        ("cosine", [1 + math.cos(math.pi * k / 10) for k in range(10)]),
    ],
)
def test_ten_steps_by_hand(name, expected):
    assert schedule(name, 10, 2.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "polynomial"])
@pytest.mark.parametrize(("total_steps", "warmup"), [(1, 1), (3, 1), (100, 20), (999, 200)])
def test_warm_up_takes_a_fifth_of_the_run(name, total_steps, warmup):
    rates = schedule(name, total_steps, 1.0)

    assert rates[:warmup] == pytest.approx([(k + 1) / warmup for k in range(warmup)])
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[warmup - 1] == 1.0


def test_wsd_by_hand():
    rates = schedule("wsd", 100, 2.0)

    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert set(rates[5:81]) == {2.0}
    assert rates[85] == pytest.approx(2.0 * (1 - 0.25**0.5))


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "wsd"])
def test_decaying_experts_end_near_zero(name):
    assert 0 < schedule(name, 1000, 1.0)[-1] < 3e-3
    assert get_expert(name)(1000, 1000, 1.0) == pytest.approx(0.0, abs=1e-12)


@given(names, lengths, peaks)
def test_rates_are_positive_and_at_most_the_peak(name, total_steps, peak):
    rates = schedule(name, total_steps, peak)

    assert len(rates) == total_steps
    assert min(rates) > 0
    assert max(rates) <= peak * (1 + 1e-12)
    assert max(rates) >= 0.99 * peak


@given(names, lengths, peaks, st.randoms(use_true_random=False))
def test_experts_are_pure_functions_of_the_step(name, total_steps, peak, draw):
    expert, rates = get_expert(name), schedule(name, total_steps, peak)
    steps = draw.choices(range(total_steps), k=20)

    assert [expert(step, total_steps, peak) for step in steps] == [rates[step] for step in steps]


@given(names, lengths, st.integers(-20, 20))
def test_rates_are_multiples_of_the_peak(name, total_steps, exponent):
    scaled = schedule(name, total_steps, 2.0**exponent)

    assert scaled == [2.0**exponent * rate for rate in schedule(name, total_steps, 1.0)]


@pytest.mark.parametrize("name", ["Cosine", "", "lineal"])
def test_an_unknown_expert_is_refused(name):
    message = f"among linear, cosine, polynomial, wsd, constant; got {name!r}"
    with pytest.raises(InputError, match=message):
        schedule(name, 10, 1.0)
