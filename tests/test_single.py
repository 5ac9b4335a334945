"""Single trainees: initial weights, order of the data, label noise, state."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrenv.errors import InputError
from lrenv.trainees.changing import ChangingMLPSpec
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.data import load_dataset
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.registry import TRAINEES, build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec, batch_order, initial_model, noisy_labels
from lrenv.trainees.synthetic import teacher_dataset
from lrenv.trainees.text import markov_dataset

SPEC = MLPSpec((7, 5), batch_size=16, total_steps=50)


def test_initial_weights_are_those_of_linear_layers(tiny_data):
    spec = replace(SPEC, hidden=(400,), init_scale=2.0)
    params = list(initial_model(spec, tiny_data, 0).parameters())

    assert [tuple(p.shape) for p in params] == [(400, 6), (400,), (3, 400), (3,)]
    for param, n_in in zip(params, (6, 6, 400, 400), strict=True):
        assert param.abs().max() <= 2 * n_in**-0.5
    assert params[0].std().item() == pytest.approx(2 * (3 * 6) ** -0.5, rel=0.05)


@pytest.mark.parametrize("spec", [SPEC, DecoderSpec(8, 1, 2), ConvNetSpec((3,), batch_norm=True)])
def test_initial_weights_follow_the_seed(tiny_data, spec):
    data = {
        "mlp": tiny_data,
        "decoder": markov_dataset(5, 4, 0, 50),
        "convnet": load_dataset("digits"),
    }[spec.kind]
    torch.manual_seed(0)
    first, again, other = (initial_model(spec, data, seed).state_dict() for seed in (1, 1, 2))

    for name, value in first.items():
        assert torch.equal(value, again[name])
        norm = "norm" in name or (spec.kind == "convnet" and name.startswith("2."))
        assert torch.equal(value, other[name]) == norm


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 40), st.integers(0, 99))
def test_batches_are_shuffled_epochs_in_a_row(n_train, batch_size, total_steps, seed):
    order = batch_order(n_train, batch_size, total_steps, seed)

    assert order.shape == (total_steps, min(batch_size, n_train))
    stream = order.flatten()
    for epoch in stream.split(n_train):
        assert len(epoch.unique()) == len(epoch)
    assert stream.min() >= 0
    assert stream.max() < n_train


def test_data_that_changes_is_trained_on_by_halves_the_second_one_first() -> None:
    order = ChangingMLPSpec(batch_size=8, total_steps=11).order(40, seed=0)

    assert order.shape == (11, 8)
    assert order[:5].flatten().sort().values.tolist()[::2] == list(range(20, 40))
    assert order[5:].max() < 20
    with pytest.raises(InputError, match=r"2 rows and 2 steps or more .* got 40 and 1; take more"):
        ChangingMLPSpec(total_steps=1).order(40, seed=0)


def test_label_noise_follows_the_seed_and_the_share(tiny_data):
    labels = tiny_data.y_train
    draws = [noisy_labels(labels, 3, 0.3, seed) for seed in (1, 1, 2)]
    many = noisy_labels(torch.zeros(20_000, dtype=torch.int64), 4, 0.3, 0)

    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert (many != 0).float().mean().item() == pytest.approx(0.3 * 3 / 4, abs=0.015)
    assert noisy_labels(labels, 3, 0.0, 1) is labels


@pytest.mark.parametrize("optimizer", [OptimizerSpec("sgd", 0.9), OptimizerSpec("adamw")])
def test_state_goes_on_where_it_stopped(tiny_data, tmp_path, optimizer):
    spec = replace(SPEC, optimizer=optimizer)
    lr = torch.tensor([0.01])

    def go(trainee: SingleTrainee, n: int) -> list[float]:
        losses = []
        for _ in range(n):
            losses.append(trainee.backward().item())
            trainee.update(lr)
        return losses

    stopped, resumed = SingleTrainee(spec, tiny_data, 1), SingleTrainee(spec, tiny_data, 1)
    go(stopped, 20)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    assert go(resumed, 30) == go(stopped, 30)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_have_the_settings_asked_for(name):
    param = torch.nn.Parameter(torch.zeros(2))
    group = OptimizerSpec(name, 0.8, 0.97, 0.3).build([param]).param_groups[0]

    assert group["weight_decay"] == 0.3
    if name == "sgd":
        assert group["momentum"] == 0.8
    else:
        assert group["betas"] == (0.8, 0.97)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_usual_optimizers_are_torchs_defaults_with_momentum(name: str) -> None:
    weight = [torch.nn.Parameter(torch.ones(1))]
    momentum = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    torchs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    torchs |= {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}

    usual = OptimizerSpec.usual(name).build(weight, lr=1e-3)

    assert usual.defaults == torchs[name](weight, lr=1e-3, **momentum).defaults


def test_unknown_optimizers_are_refused():
    with pytest.raises(InputError, match=r"sgd, adam.* adamw, rmsprop; got 'lion'"):
        OptimizerSpec("lion")


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        (ConvNetSpec(), "teacher", "Expected images for a convolutional network, teacher-6f-3c"),
        (ConvNetSpec((2,) * 4), "digits", "at least 16 pixels a side for 4 poolings, got 8x8"),
        (DecoderSpec(), "digits", "Expected tokens for a decoder, digits has none"),
        (MLPSpec(), "markov", "Expected numbers for an MLP, markov-5 holds tokens"),
    ],
)
def test_models_refuse_data_of_another_kind(spec, data, message):
    made = {"teacher": teacher_dataset(6, 3, 30, 0), "markov": markov_dataset(5, 4, 0, 50)}
    with pytest.raises(InputError, match=message):
        spec.build(made.get(data) or load_dataset(data))


def test_weights_leave_the_callers_random_numbers_alone(tiny_data):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    initial_model(SPEC, tiny_data, 1)

    assert torch.equal(torch.rand(3), expected)


def test_a_convolution_is_needed():
    with pytest.raises(InputError, match="channels of at least one convolution, got none"):
        ConvNetSpec(())


def test_heads_divide_the_width():
    with pytest.raises(InputError, match="heads that divide the width, got 0 and 32"):
        DecoderSpec(32, heads=0)
    with pytest.raises(InputError, match="heads that divide the width, got 3 and 32"):
        DecoderSpec(32, heads=3)


HEAVY = ("resnet18-mnist", "decoder-text", "lora-llm")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in TRAINEES]
)
def test_trainees_by_name_learn(name):
    trainee = build_trainee(build_task(name, 20, OptimizerSpec("adam")))
    losses = []
    for _ in range(20):
        losses.append(trainee.backward().item())
        trainee.update(torch.tensor([1e-3]))

    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
