"""Batched MLPs agree with single ones in plain torch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees import batched
from lrenv.trainees.batched import BatchedMLP
from lrenv.trainees.data import Dataset, teacher_dataset
from lrenv.trainees.mlp import MLPSpec, MLPTrainee, OptimizerSpec

N_STEPS = 50
SPEC = MLPSpec((7, 5), batch_size=16, total_steps=N_STEPS)
OPTIMIZERS = {
    "sgd": (OptimizerSpec("sgd", 0.0), 0.6),
    "momentum and decay": (OptimizerSpec("sgd", 0.9, weight_decay=0.01), 0.1),
    "adam": (OptimizerSpec("adam", 0.8, 0.99), 0.01),
    "adam and decay": (OptimizerSpec("adam", weight_decay=0.01), 0.01),
    "adamw": (OptimizerSpec("adamw", weight_decay=0.1), 0.01),
}


def train(trainee: BatchedMLP | MLPTrainee, lrs: Tensor) -> Tensor:
    """Losses of every step, ``(r, N_STEPS)``, at LRs that fall over the run."""
    losses = []
    for step in range(N_STEPS):
        losses.append(trainee.backward())
        trainee.update(lrs * (1 - step / N_STEPS))
    return torch.stack(losses, 1)


def in_double(spec: MLPSpec, data: Dataset, seed: int) -> MLPTrainee:
    inputs = {f"x_{part}": getattr(data, f"x_{part}").double() for part in ("train", "val", "test")}
    single = MLPTrainee(spec, replace(data, **inputs), seed)
    single.model.double()
    return single


@pytest.mark.parametrize("seeds", [(4, 4, 4), (4, 5, 6)], ids=["shared", "distinct"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
def test_losses_equal_those_of_single_runs(
    tiny_data, dtype, tolerance, activation, optimizer, seeds
):
    settings, lr = OPTIMIZERS[optimizer]
    spec = replace(SPEC, activation=activation, optimizer=settings)
    lrs = torch.tensor([lr, lr / 2, lr / 4], dtype=dtype)
    make = MLPTrainee if dtype == torch.float32 else in_double
    singles = [make(spec, tiny_data, seed) for seed in seeds]
    batched = BatchedMLP([spec] * 3, tiny_data, seeds, dtype)

    expected = torch.cat([train(s, lr[None]) for s, lr in zip(singles, lrs, strict=True)])
    losses = train(batched, lrs)

    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    assert expected[0, -10:].mean() < 0.98 * expected[0, :10].mean()
    for split in ("train", "val", "test"):
        scores = [
            torch.cat(pair) for pair in zip(*(s.evaluate(split) for s in singles), strict=True)
        ]
        torch.testing.assert_close(
            batched.evaluate(split)[0], scores[0], rtol=10 * tolerance, atol=0
        )
        assert batched.evaluate(split)[1].tolist() == pytest.approx(scores[1].tolist(), abs=0.011)


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["shared", "distinct"])
def test_each_run_has_its_own_settings(tiny_data, seeds):
    specs = [
        replace(SPEC, optimizer=OptimizerSpec("sgd", 0.9, weight_decay=0.05)),
        replace(SPEC, optimizer=OptimizerSpec("sgd", 0.3), init_scale=2.0, label_noise=0.5),
    ]
    lrs = torch.tensor([0.05, 0.1], dtype=torch.float64)
    singles = [in_double(spec, tiny_data, seed) for spec, seed in zip(specs, seeds, strict=True)]

    losses = train(BatchedMLP(specs, tiny_data, seeds, torch.float64), lrs)

    expected = [train(s, lr[None]) for s, lr in zip(singles, lrs, strict=True)]
    torch.testing.assert_close(losses, torch.cat(expected), rtol=1e-10, atol=0)


def test_gradients_are_those_of_autograd(tiny_data):
    single, batched = (
        in_double(SPEC, tiny_data, 2),
        BatchedMLP([SPEC], tiny_data, [2], torch.float64),
    )
    single.backward()
    batched.backward()

    pairs = zip(single.gradients(), batched.gradients(), strict=True)
    for ours, (a, b) in zip(batched.parameters(), pairs, strict=True):
        assert a.shape == ours.shape
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-14)


def test_label_noise_spares_the_other_splits(tiny_data):
    noisy, clean = (replace(SPEC, label_noise=share) for share in (1.0, 0.0))
    trainee = BatchedMLP([noisy, clean], tiny_data, [0, 0])

    first = trainee.backward()
    losses, accuracy = trainee.evaluate("train")

    assert first[0] != first[1]
    assert losses[0] == losses[1]
    assert accuracy[0] == accuracy[1]


def test_a_single_evaluation_can_read_the_first_examples_alone(tiny_data):
    single, batched = MLPTrainee(SPEC, tiny_data, 0), BatchedMLP([SPEC], tiny_data, [0])
    part = replace(tiny_data, x_val=tiny_data.x_val[:5], y_val=tiny_data.y_val[:5])

    expected = MLPTrainee(SPEC, part, 0).evaluate("val")
    for trainee in (single, batched):
        loss, accuracy = trainee.evaluate("val", 5)
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
        assert accuracy.item() == expected[1].item()
    assert single.evaluate("val")[0] != expected[0]


def test_training_does_not_alter_the_data(tiny_data):
    before = tiny_data.x_train.clone()
    train(BatchedMLP([SPEC] * 2, tiny_data, [0, 1]), torch.tensor([0.1, 0.1]))

    assert torch.equal(tiny_data.x_train, before)


def test_a_batch_larger_than_the_data_is_all_of_it(tiny_data):
    spec = replace(SPEC, batch_size=1000)
    single, batched = MLPTrainee(spec, tiny_data, 0), BatchedMLP([spec], tiny_data, [0])

    assert batched.backward().item() == pytest.approx(single.backward().item(), rel=1e-5)
    clean = MLPTrainee(spec, tiny_data, 0).evaluate("train")[0]
    assert batched.evaluate("train")[0].item() == pytest.approx(clean.item(), rel=1e-5)


def test_traits_of_each_run(tiny_data):
    specs = [replace(SPEC, optimizer=OptimizerSpec("sgd", m)) for m in (0.0, 0.9)]
    traits = BatchedMLP(specs, tiny_data, [0, 0]).traits

    assert traits.known.tolist() == [1, 1]
    assert traits.adaptive.tolist() == [0, 0]
    assert traits.momentum.tolist() == pytest.approx([0.0, 0.9])
    assert BatchedMLP([SPEC], tiny_data, [0]).traits.adaptive.tolist() == [1]


@pytest.mark.parametrize(
    "other",
    [
        {"hidden": (7,)},
        {"hidden": (7, 6)},
        {"activation": "tanh"},
        {"batch_size": 8},
        {"total_steps": 51},
        {"optimizer": OptimizerSpec("sgd")},
    ],
)
def test_mixed_shapes_are_refused(tiny_data, other):
    with pytest.raises(InputError, match=r"runs of one shape .*; put different shapes in"):
        BatchedMLP([SPEC, replace(SPEC, **other)], tiny_data, [0, 0])


@pytest.mark.parametrize(("n_specs", "n_seeds"), [(0, 0), (2, 1), (1, 2)])
def test_seeds_and_specifications_must_agree(tiny_data, n_specs, n_seeds):
    message = f"at least one run, got {n_specs} specifications and {n_seeds} seeds"
    with pytest.raises(InputError, match=message):
        BatchedMLP([SPEC] * n_specs, tiny_data, [0] * n_seeds)


@pytest.mark.parametrize("make", [BatchedMLP, MLPTrainee])
def test_an_unknown_optimizer_is_refused(tiny_data, make):
    spec = replace(SPEC, optimizer=OptimizerSpec("lion"))
    with pytest.raises(InputError, match=r"sgd, adam.* adamw; got 'lion'"):
        make(*(([spec], tiny_data, [0]) if make is BatchedMLP else (spec, tiny_data, 0)))


def test_evaluation_in_chunks_is_that_of_the_whole_split(monkeypatch):
    data = teacher_dataset(6, 3, 4500, seed=0)
    trainee = BatchedMLP([SPEC] * 2, data, [1, 2], torch.float64)
    n = len(data.x_train)
    assert n % batched._EVALUATED > 0 < n // batched._EVALUATED

    chunked = trainee.evaluate("train"), trainee.evaluate("train", 1500)
    monkeypatch.setattr(batched, "_EVALUATED", n)
    whole = trainee.evaluate("train"), trainee.evaluate("train", 1500)

    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    singles = torch.cat([in_double(SPEC, data, seed).evaluate("train")[0] for seed in (1, 2)])
    torch.testing.assert_close(chunked[0][0], singles, rtol=1e-10, atol=0)
