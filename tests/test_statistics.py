"""Statistics of a step, against direct computation."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrenv.statistics import StepMeter, StepStats, group_layers, lc_bound, lc_nuclear


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def measure(params: list[Tensor], grads: list[Tensor], updates: list[Tensor]) -> StepStats:
    meter = StepMeter()
    meter.before(0, params, grads)
    return meter.after([p + u for p, u in zip(params, updates, strict=True)])


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    flat_a, flat_b = (torch.cat([t.flatten() for t in ts]).double() for ts in (a, b))
    return (flat_a @ flat_b / (flat_a.norm() * flat_b.norm())).item()


def rates(n_runs: int, n_steps: int) -> list[Tensor]:
    return [0.01 * (1 + step) * torch.arange(1.0, n_runs + 1) for step in range(n_steps)]


def test_layers_start_at_matrices():
    shapes = [torch.Size(s) for s in [(4, 3), (4,), (4,), (2, 4, 3, 3), (), (5, 2)]]

    assert group_layers(shapes) == [0, 0, 0, 1, 1, 2]


def test_vectors_ahead_of_the_first_matrix_are_a_layer():
    assert group_layers([torch.Size(s) for s in [(4,), (), (4, 4), (4,)]]) == [0, 0, 1, 1]


def test_lc_nuclear_by_hand():
    # S = [[3, 0], [4, 5]] has SᵀS = [[25, 20], [20, 25]]: singular values √45 and √5.
    theta = torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    grad = torch.tensor([[math.sqrt(3.0), 0.0], [-1.0, math.sqrt(5.0) / 5.0]])

    assert lc_nuclear(theta, grad).item() == pytest.approx(4 * math.sqrt(5.0), rel=1e-6)


def test_lc_nuclear_of_a_vector_is_the_norm_of_a_row():
    value = lc_nuclear(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0]))

    assert value.item() == pytest.approx(math.sqrt(17.0), rel=1e-6)


def test_lc_nuclear_of_a_convolution_is_that_of_out_by_rest():
    theta, grad = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1)

    flat = lc_nuclear(theta.reshape(3, 8), grad.reshape(3, 8))
    assert lc_nuclear(theta, grad).item() == pytest.approx(flat.item(), rel=1e-6)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_lc_bound_holds(rows, columns, seed):
    theta = normal(rows, columns, seed=seed, dtype=torch.float64)
    grad = normal(rows, columns, seed=seed + 1, dtype=torch.float64)
    ones = torch.ones(rows * columns, dtype=torch.float64)

    bound = lc_bound(theta.reshape(1, -1), grad.reshape(1, -1), ones).item()
    nuclear = lc_nuclear(theta, grad).item()

    rank = min(rows, columns)
    assert bound <= nuclear * (1 + 1e-9)
    assert nuclear <= math.sqrt(rank) * bound * (1 + 1e-9)


def test_lc_bound_counts_what_a_coordinate_stands_for():
    value = lc_bound(torch.tensor([[2.0, 1.0]]), torch.ones(1, 2), torch.tensor([1.0, 9.0]))

    assert value.tolist() == pytest.approx([5.0])


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-12, 1.0, 1e12])
def test_lc_bound_keeps_products_of_any_size(scale):
    root = math.sqrt(scale)
    value = lc_bound(root * torch.tensor([[3.0, 4.0]]), torch.full((1, 2), root), torch.ones(2))

    expected = math.sqrt(3.0**4 + 4.0**4) * scale**2
    assert value.tolist() == pytest.approx([expected], rel=1e-5, abs=0)


def test_a_step_is_measured_by_layer():
    params = [normal(1, 4, 3), normal(1, 4, seed=1), normal(1, 2, 4, seed=2)]
    grads = [normal(*p.shape, seed=10 + i) for i, p in enumerate(params)]
    updates = [0.01 * normal(*p.shape, seed=20 + i) for i, p in enumerate(params)]

    stats = measure(params, grads, updates)

    def by_layer(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([tensors[0].flatten(), tensors[1]]), tensors[2].flatten()]

    theta, grad, update = (by_layer([t[0] for t in ts]) for ts in (params, grads, updates))
    expected = {
        "grad_norm": [g.norm() for g in grad],
        "lc": [(t * g).square().norm() for t, g in zip(theta, grad, strict=True)],
        "update_ratio": [u.norm() / t.norm() for t, u in zip(theta, update, strict=True)],
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(stats, name), torch.stack(values)[None], rtol=1e-4, atol=0
        )
    size, moved = torch.cat(theta).norm(), torch.cat(update).norm()
    assert stats.param_norm.item() == pytest.approx(size.item(), rel=1e-5)
    assert stats.update_norm.item() == pytest.approx(moved.item(), rel=1e-4)
    assert stats.global_ratio.item() == pytest.approx((moved / size).item(), rel=1e-4)
    assert stats.distance.item() == pytest.approx(moved.item(), rel=1e-4)


def test_distance_counts_from_the_start_and_update_from_the_last_step():
    meter, theta, grad = StepMeter(), torch.zeros(1, 2, 2), [torch.ones(1, 2, 2)]
    meter.before(0, [theta + 1], grad)
    meter.after([theta + 4])
    meter.before(5, [theta + 3], grad)

    stats = meter.after([theta + 2])

    assert stats.distance.tolist() == [2.0]
    assert stats.update_norm.tolist() == [2.0]
    assert stats.param_norm.tolist() == [6.0]


def sgd_history(momentum: float) -> list[dict[str, float]]:
    """Cosines of five SGD steps on a least-squares problem, measured and computed from torch's."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)
    params, meter = list(model.parameters()), StepMeter()
    buffers: list[Tensor] = []
    last: list[Tensor] = []
    rows = []
    for step in range(5):
        optimizer.zero_grad()
        (model(normal(8, 6, seed=step)) - 1).square().mean().backward()
        grads = [p.grad.clone() for p in params]
        meter.before(step, [p.detach()[None] for p in params], [g[None] for g in grads])
        optimizer.step()
        stats = meter.after([p.detach()[None] for p in params])
        if step:
            rows.append(
                {
                    "momentum_cos": stats.momentum_cos.item() - cosine(grads, buffers),
                    "descent_cos": stats.descent_cos.item() - cosine(last, buffers),
                    "gradient_cos": stats.gradient_cos.item() - cosine(grads, last),
                }
            )
        buffers = grads
        if momentum:
            buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in params]
        last = grads
    return rows


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cosines_are_those_of_gradients_and_momentum_buffers(momentum):
    for row in sgd_history(momentum):
        assert row == pytest.approx({name: 0.0 for name in row}, abs=1e-4)


def test_momentum_cosine_tells_an_lr_too_small_from_one_too_large():
    def second_step(lr: float) -> float:
        theta, meter = torch.full((1, 1, 1), 3.0), StepMeter()
        for step in range(2):
            meter.before(step, [theta], [theta.clone()])
            theta = theta - lr * theta
            stats = meter.after([theta])
        return stats.momentum_cos.item()

    assert second_step(0.1) == pytest.approx(1.0)
    assert second_step(1.9) == pytest.approx(-1.0)


def test_cosines_need_two_measured_steps_in_a_row():
    meter, params, grads = StepMeter(), [normal(2, 3, 3)], [normal(2, 3, 3, seed=1)]
    seen = []
    for step in (0, 1, 3, 4):
        meter.before(step, params, grads)
        params = [params[0] - 0.1 * grads[0]]
        seen.append(meter.after(params))

    for name in ("momentum_cos", "descent_cos", "gradient_cos"):
        known = [getattr(stats, name).isfinite().tolist() for stats in seen]
        assert known == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("shape", [(100_000,), (300, 400), (64, 32, 5, 5)])
def test_a_sampled_tensor_is_measured_to_a_few_percent(shape):
    param, grad = normal(1, *shape), normal(1, *shape, seed=1)
    update = 1e-3 * normal(1, *shape, seed=2)

    stats = measure([param], [grad], [update])

    assert stats.global_ratio.item() == pytest.approx(
        (update.norm() / param.norm()).item(), rel=0.03
    )
    assert stats.distance.item() == pytest.approx(update.norm().item(), rel=0.03)
    assert stats.param_norm.item() == pytest.approx(param.norm().item(), rel=0.03)
    exact = (param * grad).square().norm()
    assert stats.lc.item() == pytest.approx(exact.item(), rel=0.15)
    assert stats.grad_norm.item() == pytest.approx(grad.norm().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(256, 784), (112, 784), (128, 784), (8, 1536), (1000, 1000)])
def test_sampling_sees_all_columns(shape):
    """Inputs that are always zero, such as an image's border, leave columns without updates."""
    rows, columns = shape
    param, update = normal(1, rows, columns), 1e-3 * normal(1, rows, columns, seed=1)
    update[..., columns // 2 :] = 0.0
    update[..., 0] = 0.0

    stats = measure([param], [update], [update])

    assert stats.global_ratio.item() == pytest.approx(
        (update.norm() / param.norm()).item(), rel=0.05
    )


def test_a_batch_of_runs_equals_single_runs():
    n_runs, shapes, steps = 3, [(5, 4), (5,), (2, 5), (90, 70)], 4
    together, apart = StepMeter(), [StepMeter() for _ in range(n_runs)]
    params = [normal(n_runs, *s, seed=i) for i, s in enumerate(shapes)]
    for step, lr in enumerate(rates(n_runs, steps)):
        grads = [normal(n_runs, *s, seed=100 * step + i) for i, s in enumerate(shapes)]
        moved = [
            p - lr.view(-1, *[1] * (p.ndim - 1)) * g for p, g in zip(params, grads, strict=True)
        ]
        together.before(step, params, grads)
        stats = together.after(moved)
        for run, meter in enumerate(apart):
            one = slice(run, run + 1)
            meter.before(step, [p[one] for p in params], [g[one] for g in grads])
            single = meter.after([p[one] for p in moved])
            for field in fields(StepStats):
                torch.testing.assert_close(
                    getattr(stats, field.name)[one],
                    getattr(single, field.name),
                    rtol=1e-5,
                    atol=0,
                    equal_nan=True,
                )
        params = moved


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 0.02)],
)
def test_other_precisions_give_the_same_statistics(dtype, tolerance):
    param, grad, update = (
        normal(1, 20, 20),
        1e-4 * normal(1, 20, 20, seed=1),
        normal(1, 20, 20, seed=2),
    )

    exact = measure([param], [grad], [update])
    other = measure([param.to(dtype)], [grad.to(dtype)], [update.to(dtype)])

    for name in ("grad_norm", "lc", "update_ratio", "param_norm", "update_norm", "distance"):
        value = getattr(other, name)
        torch.testing.assert_close(
            value.float(), getattr(exact, name), rtol=tolerance, atol=0, msg=name
        )


def test_state_goes_on_where_it_stopped():
    def steps(meter: StepMeter, first: int) -> StepStats:
        for step in (first, first + 1):
            theta = normal(1, 4, 4, seed=step)
            meter.before(step, [theta], [normal(1, 4, 4, seed=50 + step)])
            stats = meter.after([normal(1, 4, 4, seed=step + 1)])
        return stats

    whole, stopped, resumed = StepMeter(), StepMeter(), StepMeter()
    steps(whole, 0)
    steps(stopped, 0)
    resumed.load_state_dict(stopped.state_dict())
    expected, got = steps(whole, 2), steps(resumed, 2)

    for field in fields(StepStats):
        assert torch.equal(getattr(got, field.name), getattr(expected, field.name))
    assert expected.momentum_cos.isfinite().all()
