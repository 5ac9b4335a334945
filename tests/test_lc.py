"""LC by hand: buckets, forms, the exact value, and its place beside other schedules."""

import gc
import math

import pytest
import torch
from torch import nn

from lrenv.adaptive import LCSensitivityLR
from lrenv.adaptive.lc import bucket_multipliers, lc_exact, lc_frobenius
from lrenv.errors import InputError
from lrenv.scheduler import LearnedLR
from lrenv.statistics import lc_nuclear


def job(values: list[list[float]], grads: list[list[float]], lr: float = 0.1):
    """SGD on given parameters with given gradients."""
    params = [nn.Parameter(torch.tensor(v)) for v in values]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.tensor(grad)
    return params, torch.optim.SGD(params, lr=lr)


def test_fifths_get_their_multipliers() -> None:
    assert bucket_multipliers([5.0, 1.0, 3.0, 2.0, 4.0]) == [0.2, 5.0, 1.0, 3.0, 0.6]
    normal = bucket_multipliers([5.0, 1.0, 3.0, 2.0, 4.0], normalize=True)
    assert sum(normal) == pytest.approx(5.0)
    assert normal[1] / normal[0] == pytest.approx(25.0)
    # quantiles of 0, 1 … 9: 1.8, 3.6, 5.4, 7.2
    expected = [5.0] * 2 + [3.0] * 2 + [1.0] * 2 + [0.6] * 2 + [0.2] * 2
    assert bucket_multipliers([float(k) for k in range(10)]) == expected


def test_tensors_that_are_alike_keep_their_lr() -> None:
    assert bucket_multipliers([0.0] * 4) == [1.0] * 4
    assert bucket_multipliers([]) == []


@pytest.mark.parametrize("form", ["nuclear", "frobenius"])
def test_a_step_by_hand(form: str) -> None:
    # θ·g is 1, 2, 3, 4, 5 in every tensor's only coordinate: squares rise from the first on
    values, grads = [[1.0]] * 5, [[1.0], [2.0], [3.0], [4.0], [5.0]]
    params, optimizer = job(values, grads)
    scheduler = LCSensitivityLR(optimizer, form=form)
    optimizer.step()
    scheduler.step()

    factors = (5.0, 3.0, 1.0, 0.6, 0.2)
    expected = [1.0 - 0.1 * m * g for m, (g,) in zip(factors, grads, strict=True)]
    assert [p.item() for p in params] == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1] * 5
    assert scheduler.multipliers == list(factors)


def test_the_bound_lies_below_the_nuclear_norm() -> None:
    theta, grad = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    nuclear, bound = float(lc_nuclear(theta, grad)), float(lc_frobenius(theta, grad))
    assert bound < nuclear < math.sqrt(6) * bound
    row = torch.tensor([1.0, -2.0])
    # one row: the nuclear norm is the Euclidean norm of (1, 16)
    assert float(lc_nuclear(row, torch.tensor([1.0, 2.0]))) == pytest.approx(math.sqrt(257.0))
    assert float(lc_frobenius(row, torch.tensor([1.0, 2.0]))) == pytest.approx(math.sqrt(257.0))


@pytest.mark.parametrize("interval", [1, 3])
def test_the_curvature_of_a_quadratic_is_exact(interval: int) -> None:
    curvatures = [1.0, 4.0, 0.5, 2.0, 3.0]
    params = [nn.Parameter(torch.tensor([1.0 + k])) for k in range(5)]
    optimizer = torch.optim.SGD(params, lr=0.01)
    scheduler = LCSensitivityLR(optimizer, form="curvature", interval=interval)
    measured = []
    own = scheduler._measure

    def measure(params):
        found = own(params)
        measured.append(list(found.values()))
        return found

    scheduler._measure = measure
    exact = []
    for _ in range(2 * interval + 1):
        exact.append(
            [0.5 * h * float(p.detach()) ** 2 for h, p in zip(curvatures, params, strict=True)]
        )
        optimizer.zero_grad()
        sum(0.5 * h * p.square().sum() for h, p in zip(curvatures, params, strict=True)).backward()
        optimizer.step()

    assert len(measured) == 3
    assert measured[0] == [0.0] * 5
    assert measured[1] == pytest.approx(exact[interval], rel=1e-3)
    assert measured[2] == pytest.approx(exact[2 * interval], rel=1e-3)


def test_exact_lc_is_what_a_quadratic_has_to_lose() -> None:
    theta = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    h = torch.tensor([2.0, 1.0, -1.0])
    (lc,) = lc_exact((0.5 * h * theta.square()).sum(), [theta])
    assert lc.tolist() == pytest.approx([1.0, 2.0, 0.0])


def test_exact_lc_of_a_linear_parameter_is_none() -> None:
    theta = torch.tensor([1.0], requires_grad=True)
    assert lc_exact((3.0 * theta).sum(), [theta])[0].tolist() == [0.0]


def test_tensors_without_gradients_have_no_say() -> None:
    params, optimizer = job([[1.0]] * 7, [[g] for g in (5.0, 1.0, 3.0, 2.0, 4.0, 0.0, 0.0)])
    params[5].grad = params[6].grad = None
    scheduler = LCSensitivityLR(optimizer)
    optimizer.step()
    assert scheduler.multipliers == [0.2, 5.0, 1.0, 3.0, 0.6, 1.0, 1.0]


def test_sensitivities_do_not_underflow() -> None:
    row = torch.tensor([1e-2, 2e-2])
    exact = float(lc_nuclear(row.double(), torch.full((2,), 1e-12).double()))
    assert float(lc_frobenius(row, torch.full((2,), 1e-12))) == pytest.approx(exact)


@pytest.mark.parametrize("form", ["nuclear", "frobenius", "curvature"])
def test_groups_of_half_precision_may_be_added(form: str) -> None:
    params, optimizer = job([[1.0], [2.0]], [[1.0], [3.0]])
    scheduler = LCSensitivityLR(optimizer, form=form)
    new = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)) for _ in range(3)]
    optimizer.add_param_group({"params": []})
    optimizer.add_param_group({"params": new})
    for _ in range(2):
        for param in (*params, *new):
            param.grad = 2.0 * torch.ones_like(param)
        optimizer.step()
    assert len(scheduler.multipliers) == len(optimizer.param_groups) == 5


def test_it_multiplies_whatever_another_schedule_sets() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    layerwise, learned = LCSensitivityLR(optimizer), None
    learned = LearnedLR(optimizer, 20)
    lrs = set()
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        layerwise.step()
        learned.step(loss)
        lrs.add(optimizer.param_groups[0]["lr"])
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert len(lrs) > 5
    assert set(layerwise.multipliers) > {5.0, 0.2}


def test_gradients_that_are_not_finite_change_nothing() -> None:
    _, optimizer = job([[1.0]] * 5, [[1.0], [2.0], [math.inf], [4.0], [5.0]])
    scheduler = LCSensitivityLR(optimizer)
    optimizer.step()
    assert scheduler.multipliers == [1.0] * 5


@pytest.mark.parametrize("form", ["nuclear", "frobenius", "curvature"])
def test_sparse_gradients_count_as_dense_ones(form: str) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(8, 3, sparse=sparse), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
        scheduler = LCSensitivityLR(optimizer, form=form)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([1, 2, 5])).square().mean().backward()
            optimizer.step()
        found.append(scheduler.multipliers)
        names = [group["param_names"] for group in optimizer.param_groups]
        assert names == [["0.weight"], ["1.weight"], ["1.bias"]]

    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_one_that_nobody_keeps_leaves_no_hooks() -> None:
    _, optimizer = job([[1.0]], [[1.0]])
    for _ in range(3):
        scheduler = LCSensitivityLR(optimizer)
    gc.collect()
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del scheduler
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_tensor_lr_is_set_in_place() -> None:
    params, _ = job([[1.0]] * 5, [[1.0], [2.0], [3.0], [4.0], [5.0]])
    optimizer = torch.optim.Adam(params, lr=torch.tensor(0.1))
    scheduler = LCSensitivityLR(optimizer)
    tensors = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    assert all(a is b["lr"] for a, b in zip(tensors, optimizer.param_groups, strict=True))
    assert [float(lr) for lr in tensors] == pytest.approx([0.1] * 5)
    assert scheduler.multipliers == [5.0, 3.0, 1.0, 0.6, 0.2]


@pytest.mark.parametrize("form", ["frobenius", "curvature"])
def test_resume_is_exact(tmp_path, form: str) -> None:
    def start():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, LCSensitivityLR(optimizer, form=form, interval=3)

    def go(parts, first: int, last: int) -> None:
        model, optimizer, scheduler = parts
        for step in range(first, last):
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scheduler.step()

    whole, stopped, resumed = start(), start(), start()
    go(whole, 0, 14)
    go(stopped, 0, 8)
    torch.save([part.state_dict() for part in stopped], tmp_path / "state.pt")
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    go(resumed, 8, 14)
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "got LBFGS"),
        ({"form": "exact"}, "among nuclear, frobenius, curvature"),
        ({"interval": 0}, "at least 1"),
    ],
)
def test_bad_settings(kwargs, message) -> None:
    _, optimizer = job([[1.0]], [[1.0]])
    with pytest.raises(InputError, match=message):
        LCSensitivityLR(**{"optimizer": optimizer, **kwargs})
