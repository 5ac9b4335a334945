"""Batched trainees agree with single ones in plain torch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.adapted import AdaptedDecoderSpec
from lrenv.trainees.autoencoder import AutoencoderSpec
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.data import Dataset, load_dataset
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.mlp import MLPSpec, StackedMLP
from lrenv.trainees.regressor import RegressorSpec
from lrenv.trainees.resnet import ResNet18Spec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec, RunSpec, noisy_labels
from lrenv.trainees.synthetic import teacher_dataset
from lrenv.trainees.text import encipher, markov_dataset, python_docs
from lrenv.trainees.variants import codes, downsample, standardise

N_STEPS = 50
RUN = {"batch_size": 16, "total_steps": N_STEPS}
SPEC = MLPSpec((7, 5), **RUN)
FAMILIES = {
    "mlp-relu": MLPSpec((7, 5), "relu", **RUN),
    "mlp-tanh": MLPSpec((7, 5), "tanh", **RUN),
    "mlp-gelu": MLPSpec((7, 5), "gelu", **RUN),
    "mlp-linear": MLPSpec((), **RUN),
    "convnet": ConvNetSpec((4, 6), "gelu", **RUN),
    "convnet-batch-norm": ConvNetSpec((4, 6), "tanh", batch_norm=True, **RUN),
    "decoder": DecoderSpec(8, 2, 2, **RUN),
    "lora": AdaptedDecoderSpec(8, 1, 2, rank=2, alpha=2.0, **RUN),
    "autoencoder": AutoencoderSpec((5, 2), "tanh", **RUN),
    "regressor": RegressorSpec((7, 5), "gelu", **RUN),
}
NO_CLASSES = ("autoencoder", "regressor")
OPTIMIZERS = {
    "sgd": (OptimizerSpec("sgd", 0.0), 0.4),
    "momentum and decay": (OptimizerSpec("sgd", 0.9, weight_decay=0.01), 0.08),
    "adam": (OptimizerSpec("adam", 0.8, 0.99), 0.01),
    "adam and decay": (OptimizerSpec("adam", weight_decay=0.01), 0.01),
    "adamw": (OptimizerSpec("adamw", weight_decay=0.1), 0.01),
    "rmsprop": (OptimizerSpec("rmsprop", 0.5, 0.99, 0.01), 0.002),
}


@pytest.fixture(scope="module")
def data_of(tiny_data):
    images = standardise(downsample(load_dataset("digits"), 6))
    tokens = markov_dataset(9, 7, seed=0, n_samples=300)
    data = {"mlp": tiny_data, "convnet": images, "decoder": tokens}
    text = python_docs(7)
    few = {part: getattr(text, part)[:300] for part in ("x_train", "y_train", "x_val", "y_val")}
    few |= {part: getattr(text, part)[:60] for part in ("x_test", "y_test")}
    data["adapted-decoder"] = encipher(replace(text, **few), 0.5, seed=0)
    return {**data, "autoencoder": images, "regressor": codes(images, 4, 0), "resnet18": images}


def train(trainee: BatchedTrainee | SingleTrainee, lrs: Tensor) -> Tensor:
    """Losses of every step, ``(r, N_STEPS)``, at LRs that fall over the run."""
    losses = []
    for step in range(N_STEPS):
        losses.append(trainee.backward())
        trainee.update(lrs * (1 - step / N_STEPS))
    return torch.stack(losses, 1)


def in_double(spec: RunSpec, data: Dataset, seed: int) -> SingleTrainee:
    if data.x_train.is_floating_point():
        names = [f"x_{part}" for part in ("train", "val", "test")]
        data = replace(data, **{name: getattr(data, name).double() for name in names})
    single = SingleTrainee(spec, data, seed)
    single.model.double()
    return single


def test_resnets_agree_with_single_ones(data_of):
    spec = ResNet18Spec(optimizer=OptimizerSpec("sgd"), batch_size=8, total_steps=4)
    runs = [SingleTrainee(spec, data_of["resnet18"], seed) for seed in (0, 1)]
    batched = BatchedTrainee([spec] * 2, data_of["resnet18"], [0, 1])
    for _ in range(4):
        expected = torch.cat([single.backward() for single in runs])
        torch.testing.assert_close(batched.backward(), expected, rtol=1e-4, atol=0.0)
        for trainee in (*runs, batched):
            trainee.update(torch.full((trainee.n_runs,), 1e-3))
    each = [single.evaluate("val", 40) for single in runs]
    scores = [torch.cat(score) for score in zip(*each, strict=True)]

    assert len({loss.item() for loss in scores[0]}) == 2
    torch.testing.assert_close(list(batched.evaluate("val", 40)), scores, rtol=1e-3, atol=0.0)


def test_losses_do_not_depend_on_the_parts(tiny_data, monkeypatch):
    def losses() -> Tensor:
        trainee = BatchedTrainee([SPEC] * 5, tiny_data, range(5))
        return train(trainee, torch.full((5,), 0.1))

    whole = losses()
    monkeypatch.setattr("lrenv.trainees.mlp._PART", 2 * 16 * 7)  # two runs

    torch.testing.assert_close(losses(), whole, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("seeds", [(4, 4, 4), (4, 5, 6)], ids=["shared", "distinct"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
def test_losses_equal_those_of_single_runs(data_of, dtype, tolerance, family, optimizer, seeds):
    settings, lr = OPTIMIZERS[optimizer]
    spec = replace(FAMILIES[family], optimizer=settings)
    data = data_of[spec.kind]
    lrs = torch.tensor([lr, lr / 2, lr / 4], dtype=dtype)
    make = SingleTrainee if dtype == torch.float32 else in_double
    singles = [make(spec, data, seed) for seed in seeds]
    batched = BatchedTrainee([spec] * 3, data, seeds, dtype)

    expected = torch.cat([train(s, lr[None]) for s, lr in zip(singles, lrs, strict=True)])
    losses = train(batched, lrs)

    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
    assert expected[0, -10:].mean() < 0.99 * expected[0, :10].mean()
    for split in ("train", "val", "test"):
        scores = [
            torch.cat(pair) for pair in zip(*(s.evaluate(split) for s in singles), strict=True)
        ]
        torch.testing.assert_close(
            batched.evaluate(split)[0], scores[0], rtol=10 * tolerance, atol=0
        )
        # NaN where the model predicts no classes
        hits = pytest.approx(scores[1].tolist(), abs=0.011, nan_ok=family in NO_CLASSES)
        assert batched.evaluate(split)[1].tolist() == hits


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["shared", "distinct"])
def test_each_run_has_its_own_settings(tiny_data, seeds):
    specs = [
        replace(SPEC, optimizer=OptimizerSpec("sgd", 0.9, weight_decay=0.05)),
        replace(
            SPEC,
            optimizer=OptimizerSpec("sgd", 0.3),
            init_scale=2.0,
            label_noise=0.5,
            lr_multiplier=0.3,
        ),
    ]
    lrs = torch.tensor([0.05, 0.1], dtype=torch.float64)
    singles = [in_double(spec, tiny_data, seed) for spec, seed in zip(specs, seeds, strict=True)]

    losses = train(BatchedTrainee(specs, tiny_data, seeds, torch.float64), lrs)

    expected = [train(s, lr[None]) for s, lr in zip(singles, lrs, strict=True)]
    torch.testing.assert_close(losses, torch.cat(expected), rtol=1e-10, atol=0)


def test_gradients_are_those_of_autograd(tiny_data):
    single, batched = (
        in_double(SPEC, tiny_data, 2),
        BatchedTrainee([SPEC], tiny_data, [2], torch.float64),
    )
    single.backward()
    batched.backward()

    pairs = zip(single.gradients(), batched.gradients(), strict=True)
    for ours, (a, b) in zip(batched.parameters(), pairs, strict=True):
        assert a.shape == ours.shape
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-14)


def test_label_noise_spares_the_other_splits(tiny_data):
    noisy, clean = (replace(SPEC, label_noise=share) for share in (1.0, 0.0))
    trainee = BatchedTrainee([noisy, clean], tiny_data, [0, 0])

    first = trainee.backward()
    losses, accuracy = trainee.evaluate("train")

    assert first[0] != first[1]
    assert losses[0] == losses[1]
    assert accuracy[0] == accuracy[1]


def test_noisy_numbers_are_those_of_other_rows(data_of):
    labels = data_of["regressor"].y_train

    noisy = noisy_labels(labels, 4, 0.3, seed=0)

    changed = (noisy != labels).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert {tuple(row) for row in noisy.tolist()} <= {tuple(row) for row in labels.tolist()}
    assert noisy_labels(labels, 4, 0.0, seed=0) is labels


def test_a_single_evaluation_can_read_the_first_examples_alone(tiny_data):
    single, batched = SingleTrainee(SPEC, tiny_data, 0), BatchedTrainee([SPEC], tiny_data, [0])
    part = replace(tiny_data, x_val=tiny_data.x_val[:5], y_val=tiny_data.y_val[:5])

    expected = SingleTrainee(SPEC, part, 0).evaluate("val")
    for trainee in (single, batched):
        loss, accuracy = trainee.evaluate("val", 5)
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
        assert accuracy.item() == expected[1].item()
    assert single.evaluate("val")[0] != expected[0]


def test_training_does_not_alter_the_data(tiny_data):
    before = tiny_data.x_train.clone()
    train(BatchedTrainee([SPEC] * 2, tiny_data, [0, 1]), torch.tensor([0.1, 0.1]))

    assert torch.equal(tiny_data.x_train, before)


def test_a_batch_larger_than_the_data_is_all_of_it(tiny_data):
    spec = replace(SPEC, batch_size=1000)
    single, batched = SingleTrainee(spec, tiny_data, 0), BatchedTrainee([spec], tiny_data, [0])

    assert batched.backward().item() == pytest.approx(single.backward().item(), rel=1e-5)
    clean = SingleTrainee(spec, tiny_data, 0).evaluate("train")[0]
    assert batched.evaluate("train")[0].item() == pytest.approx(clean.item(), rel=1e-5)


def test_traits_of_each_run(tiny_data):
    specs = [replace(SPEC, optimizer=OptimizerSpec("sgd", m)) for m in (0.0, 0.9)]
    traits = BatchedTrainee(specs, tiny_data, [0, 0]).traits

    assert traits.known.tolist() == [1, 1]
    assert traits.adaptive.tolist() == [0, 0]
    assert traits.momentum.tolist() == pytest.approx([0.0, 0.9])


@pytest.mark.parametrize("optimizer", [spec for spec, _ in OPTIMIZERS.values()], ids=OPTIMIZERS)
def test_traits_are_those_of_the_torch_optimizer(tiny_data, optimizer):
    spec = replace(SPEC, optimizer=optimizer)
    single = SingleTrainee(spec, tiny_data, 0).traits
    batched = BatchedTrainee([spec], tiny_data, [0]).traits

    for name, value in vars(single).items():
        assert getattr(batched, name).tolist() == pytest.approx(value.tolist()), name


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
        BatchedTrainee([SPEC, replace(SPEC, **other)], tiny_data, [0, 0])


@pytest.mark.parametrize(("n_specs", "n_seeds"), [(0, 0), (2, 1), (1, 2)])
def test_seeds_and_specifications_must_agree(tiny_data, n_specs, n_seeds):
    message = f"at least one run, got {n_specs} specifications and {n_seeds} seeds"
    with pytest.raises(InputError, match=message):
        BatchedTrainee([SPEC] * n_specs, tiny_data, [0] * n_seeds)


def test_evaluation_in_chunks_is_that_of_the_whole_split(monkeypatch):
    data = teacher_dataset(6, 3, 4500, seed=0)
    trainee = BatchedTrainee([SPEC] * 2, data, [1, 2], torch.float64)
    n = len(data.x_train)
    monkeypatch.setattr(StackedMLP, "pass_size", 2000)

    chunked = trainee.evaluate("train"), trainee.evaluate("train", 1500)
    monkeypatch.setattr(StackedMLP, "pass_size", 2 * n)
    whole = trainee.evaluate("train"), trainee.evaluate("train", 1500)

    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)
    singles = torch.cat([in_double(SPEC, data, seed).evaluate("train")[0] for seed in (1, 2)])
    torch.testing.assert_close(chunked[0][0], singles, rtol=1e-10, atol=0)
