"""Variants of data sets: down-sampled, projected, standardised, of fewer classes, drawn."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset, load_dataset
from lrenv.trainees.variants import (
    codes,
    downsample,
    halves,
    random_projection,
    renamed_behind,
    some_classes,
    standardise,
)


def tiny(image_shape: tuple[int, int, int] | None = (1, 4, 4)) -> Dataset:
    x = torch.arange(48, dtype=torch.float32).view(3, 16)
    y = torch.tensor([0, 1, 0])
    return Dataset(
        name="tiny",
        x_train=x,
        y_train=y,
        x_val=x[:2] + 1,
        y_val=y[:2],
        x_test=x[2:],
        y_test=y[2:],
        n_classes=2,
        image_shape=image_shape,
        note="made by hand",
    )


def test_downsample_averages_blocks_of_pixels():
    small = downsample(tiny(), 2)

    assert small.name == "tiny-2x2"
    assert small.image_shape == (1, 2, 2)
    assert small.x_train[0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert small.x_val[0].tolist() == [3.5, 5.5, 11.5, 13.5]


@pytest.mark.parametrize(
    ("dataset", "size", "message"),
    [
        (tiny(), 5, "from 1 to 4 pixels, got 5"),
        (tiny(), 0, "from 1 to 4 pixels, got 0"),
        (tiny(image_shape=None), 2, "tiny has an image_shape of None"),
    ],
)
def test_downsample_refuses(dataset, size, message):
    with pytest.raises(InputError, match=message):
        downsample(dataset, size)


def test_projection_maps_a_row_alike_in_every_split():
    base = load_dataset("digits")
    row = base.x_train[7]
    same = dataclasses.replace(base, x_val=row.repeat(2, 1), x_test=row[None])

    projected = random_projection(same, 24, seed=3)

    expected = projected.x_train[7]
    torch.testing.assert_close(projected.x_val, expected.repeat(2, 1))
    torch.testing.assert_close(projected.x_test, expected[None])
    assert (projected.n_features, projected.image_shape) == (24, None)


@given(seed=st.integers(0, 2**31), n_features=st.integers(1, 40))
def test_projection_standardises_and_repeats(seed, n_features):
    x = random_projection(load_dataset("digits"), n_features, seed).x_train

    torch.testing.assert_close(x.mean(0), torch.zeros(n_features), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(n_features), atol=1e-5, rtol=0)
    again = random_projection(load_dataset("digits"), n_features, seed).x_train
    torch.testing.assert_close(again, x, atol=0, rtol=0)


def test_projection_refuses_no_features():
    with pytest.raises(InputError, match="n_features of at least 1, got 0"):
        random_projection(tiny(), 0, seed=0)


def test_standardise_uses_the_train_split():
    result = standardise(tiny())

    std = tiny().x_train.std()
    assert result.x_train.mean() == pytest.approx(0, abs=1e-6)
    assert result.x_train.std() == pytest.approx(1)
    torch.testing.assert_close(result.x_val, result.x_train[:2] + 1 / std)


def test_standardise_keeps_constant_inputs_finite():
    base = tiny()
    flat = dataclasses.replace(base, x_train=torch.ones_like(base.x_train))

    assert standardise(flat).x_train.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "n_features", "n_classes", "n"), [("breast-cancer", 30, 2, 569), ("wine", 13, 3, 178)]
)
def test_tables_have_standardised_columns(name, n_features, n_classes, n):
    table = load_dataset(name)

    assert (table.n_features, table.n_classes) == (n_features, n_classes)
    assert sum(len(table.split(part)[0]) for part in ("train", "val", "test")) == n
    torch.testing.assert_close(table.x_train.mean(0), torch.zeros(n_features), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.x_train.std(0), torch.ones(n_features))
    assert table.x_val.mean(0).abs().max() > 1e-3


def test_halves_of_images_stay_together():
    images = downsample(load_dataset("digits"), 6)
    split = halves(images)

    whole = images.x_val.view(-1, 6, 6)
    assert split.image_shape == (1, 3, 6)
    assert split.n_classes == split.n_features == 18
    for part, ours in ((whole[:, :3], split.x_val), (whole[:, 3:], split.y_val)):
        pairs = torch.corrcoef(torch.stack([part.flatten(), ours.flatten()]))
        assert pairs[0, 1].item() == pytest.approx(1.0, abs=1e-5)
    assert split.y_train.std().item() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(InputError, match="expected images of an even height"):
        halves(downsample(images, 5))


def test_codes_are_linear_in_the_inputs():
    images = downsample(load_dataset("digits"), 4)
    data = codes(images, 3, seed=1)

    def with_ones(x):
        return torch.cat([x, torch.ones(len(x), 1)], 1)

    solution = torch.linalg.lstsq(with_ones(data.x_train).double(), data.y_train.double()).solution
    predicted = with_ones(data.x_test).double() @ solution
    torch.testing.assert_close(predicted, data.y_test.double(), rtol=1e-3, atol=1e-3)
    assert data.n_classes == 3
    assert data.y_train.std(0).tolist() == pytest.approx([1.0] * 3, abs=1e-4)


def test_some_classes_are_kept_and_numbered_anew():
    images = load_dataset("digits")
    few = some_classes(images, 3, seed=0)

    assert few.n_classes == 3
    assert set(few.y_train.tolist()) == {0, 1, 2}
    rows = {tuple(row.tolist()): y for row, y in zip(images.x_test, images.y_test, strict=True)}
    labels = {
        (int(y), int(rows[tuple(x.tolist())])) for x, y in zip(few.x_test, few.y_test, strict=True)
    }
    assert len(labels) == 3
    with pytest.raises(InputError, match="expected from 2 to 10 classes, got 11"):
        some_classes(images, 11, seed=0)


def test_renamed_classes_come_behind_the_examples_as_they_are():
    digits = load_dataset("digits")
    data = renamed_behind(digits, seed=0)
    n = len(digits.y_train)

    assert len(data.x_train) == len(data.y_train) == 2 * n
    assert torch.equal(data.y_train[:n], digits.y_train)
    assert torch.equal(data.x_train[n:], digits.x_train)
    names = set(zip(data.y_train[:n].tolist(), data.y_train[n:].tolist(), strict=True))
    assert len(names) == 10
    assert any(old != new for old, new in names)
    assert torch.equal(data.y_val, digits.y_val)
