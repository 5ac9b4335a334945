"""The policy networks."""

import pytest
import torch
from torch import Tensor

from lrenv.decisions import MAX_DECISIONS
from lrenv.errors import InputError
from lrenv.policies.network import (
    CausalTransformer,
    ClassicTransformer,
    Head,
    sinusoidal_positions,
    state_on_cpu,
)

N_FEATURES = 7


@pytest.fixture(scope="module")
def head() -> Head:
    torch.manual_seed(0)
    made = Head("scale-free", N_FEATURES)
    with torch.no_grad():
        made.head.weight.mul_(10.0)
    return made.eval().requires_grad_(False)


def some_tokens(n_runs: int, t: int) -> Tensor:
    """Random tokens whose first feature says that they are real."""
    tokens = torch.randn(n_runs, t, N_FEATURES, generator=torch.Generator().manual_seed(t))
    tokens[..., 0] = 1.0
    return tokens


def test_positions_by_hand():
    positions = sinusoidal_positions(3, 4)

    at = torch.tensor([0.0, 1.0, 2.0])
    columns = [at.sin(), at.cos(), (at / 100).sin(), (at / 100).cos()]
    torch.testing.assert_close(positions, torch.stack(columns, 1))
    assert sinusoidal_positions(3, 5).shape == (3, 5)


def test_cached_steps_equal_a_full_pass(head):
    tokens, cache = some_tokens(3, MAX_DECISIONS), []

    steps = torch.stack([head.step(token, cache) for token in tokens.unbind(1)], 1)

    full = head(tokens)
    torch.testing.assert_close(steps, full, rtol=0, atol=1e-5)
    assert full.std() > 0.01


@pytest.mark.parametrize("changed", [1, 12, 24])
def test_later_decisions_do_not_reach_earlier_ones(head, changed):
    tokens = some_tokens(2, 25)
    other = tokens.clone()
    other[:, changed] += 3.0

    before, after = head(tokens), head(other)

    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert ((after - before)[:, changed:].abs() > 1e-4).all()


def test_last_reads_the_last_real_token_of_each_run(head):
    tokens = some_tokens(3, 30)
    lengths = [1, 17, 30]
    padded = torch.zeros(3, MAX_DECISIONS, N_FEATURES)
    for run, length in enumerate(lengths):
        padded[run, :length] = tokens[run, :length]

    full = head(tokens)
    expected = torch.stack([full[run, length - 1] for run, length in enumerate(lengths)])
    torch.testing.assert_close(head.last(padded), expected, rtol=0, atol=1e-5)


def test_runs_of_a_batch_do_not_touch_each_other(head):
    tokens = some_tokens(4, 10)

    torch.testing.assert_close(head(tokens)[2:3], head(tokens[2:3]), rtol=0, atol=1e-5)


def test_a_head_starts_near_zero():
    torch.manual_seed(0)

    assert Head("scale-free", N_FEATURES)(some_tokens(8, 20)).abs().max() < 0.3


def test_the_classic_encoder_is_tied_to_an_even_width():
    message = r"even token width \(layers of the trainee \+ 4\), got 7; use a trainee with an even"
    with pytest.raises(InputError, match=message):
        ClassicTransformer(7)


def test_the_classic_head_reads_a_window():
    torch.manual_seed(0)
    head = Head("classic", 6).eval()
    window = torch.randn(3, 20, 6)

    out = head.last(window)

    assert out.shape == (3,)
    torch.testing.assert_close(out[1:2], head.last(window[1:2]), rtol=0, atol=1e-5)
    changed = window.clone()
    changed[:, 0] += 1.0
    assert (head.last(changed) - out).abs().min() > 1e-6


def test_the_classic_head_normalises_its_inputs():
    torch.manual_seed(0)
    head, window = Head("classic", 6).eval(), torch.randn(2, 20, 6)
    expected = head.last(window)

    head.trunk.mean += 3.0
    head.trunk.std *= 2.0

    torch.testing.assert_close(head.last(2 * window + 3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("preset", "width"), [("scale-free", N_FEATURES), ("classic", 6)])
def test_state_round_trip(preset, width):
    first, second = Head(preset, width), Head(preset, width)
    second.load_state_dict(state_on_cpu(first))

    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.head.weight.data_ptr() != second.head.weight.data_ptr()


def test_the_causal_network_serves_as_many_decisions_as_there_are():
    trunk = CausalTransformer(N_FEATURES)

    assert trunk(some_tokens(1, MAX_DECISIONS)).shape == (1, MAX_DECISIONS, trunk.width)
