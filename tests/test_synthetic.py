"""Data sets drawn at random."""

from __future__ import annotations

import pytest
import torch

from lrenv.errors import InputError
from lrenv.trainees.synthetic import (
    cluster_dataset,
    photo_dataset,
    picture_dataset,
    teacher_dataset,
)

SEEDS = range(40)


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: teacher_dataset(8, 4, 500, seed),
        lambda seed: picture_dataset(4, 6, 500, seed),
        lambda seed: photo_dataset(4, 6, 500, seed),
        lambda seed: cluster_dataset(6, 4, 500, seed),
    ],
)
def test_data_is_a_function_of_its_seed(draw):
    first, again, other = (draw(seed) for seed in (1, 1, 2))

    assert [len(first.split(name)[1]) for name in ("train", "val", "test")] == [300, 100, 100]
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_train, again.y_train)
    assert not torch.equal(first.y_train, other.y_train)
    assert first.y_train.bincount(minlength=4).min() > 20


@pytest.mark.parametrize("arguments", [(0, 2, 100), (8, 1, 100), (8, 4, 19)])
def test_teacher_refuses(arguments):
    with pytest.raises(InputError, match=f"got {arguments[0]}, {arguments[1]} and {arguments[2]}"):
        teacher_dataset(*arguments, seed=0)


def test_a_teacher_can_give_its_outputs():
    numbers, classes = (teacher_dataset(8, 4, 500, 0, numbers=n) for n in (True, False))

    assert numbers.y_train.shape == (300, 4)
    assert torch.equal(numbers.y_train.argmax(1), classes.y_train)
    assert torch.equal(numbers.x_val, classes.x_val)
    assert teacher_dataset(4, 1, 100, 0, numbers=True).y_test.shape == (20, 1)
    with pytest.raises(InputError, match="n_classes >= 1 and"):
        teacher_dataset(4, 0, 100, 0, numbers=True)


def nearest_class_accuracy(data):
    """Share of the validation split whose class has the nearest mean of the train split."""
    means = torch.stack([data.x_train[data.y_train == k].mean(0) for k in range(data.n_classes)])
    return (torch.cdist(data.x_val, means).argmin(1) == data.y_val).float().mean().item()


@pytest.mark.parametrize("draw", [photo_dataset, picture_dataset])
def test_pictures_are_standardised_over_all_pixels(draw):
    first = draw(4, 6, 500, seed=1)

    whole = torch.cat([first.split(name)[0] for name in ("train", "val", "test")])
    assert whole.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert whole.std().item() == pytest.approx(1.0, abs=1e-4)


def test_pictures_have_one_channel_or_three_and_any_difficulty():
    sets = [picture_dataset(5, 8, 1000, seed) for seed in SEEDS]
    accuracies = [nearest_class_accuracy(data) for data in sets]

    assert {data.image_shape for data in sets} == {(1, 8, 8), (3, 8, 8)}
    assert all(data.x_train.isfinite().all() for data in sets)
    assert all(data.n_features == data.image_shape[0] * 64 for data in sets)
    assert min(accuracies) < 0.4
    assert max(accuracies) > 0.95


def test_patches_of_photographs_are_grey_or_coloured_and_show_their_places():
    sets = [photo_dataset(5, 8, 1000, seed) for seed in SEEDS]
    nearest = [data.y_train[torch.cdist(data.x_val, data.x_train).argmin(1)] for data in sets]
    accuracies = [(y == d.y_val).float().mean().item() for y, d in zip(nearest, sets, strict=True)]

    assert {data.image_shape for data in sets} == {(1, 8, 8), (3, 8, 8)}
    assert all(data.n_features == data.image_shape[0] * 64 for data in sets)
    assert min(accuracies) > 0.3
    assert sorted(accuracies)[len(sets) // 2] > 0.8


def test_patches_are_as_large_as_the_photographs_allow():
    sets = [photo_dataset(3, 30, 30, seed) for seed in SEEDS]

    assert {data.image_shape[1:] for data in sets} == {(30, 30)}
    with pytest.raises(InputError, match="size of at most 30, got 31"):
        photo_dataset(3, 31, 30, seed=0)


def test_columns_of_clusters_are_standardised():
    first = cluster_dataset(6, 3, 500, seed=1)

    assert first.image_shape is None
    torch.testing.assert_close(first.x_train.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.x_train.std(0), torch.ones(6))


def test_clusters_are_of_any_difficulty():
    accuracies = [nearest_class_accuracy(cluster_dataset(8, 3, 1000, seed)) for seed in SEEDS]

    assert min(accuracies) < 0.5
    assert max(accuracies) > 0.9


@pytest.mark.parametrize("arguments", [(1, 8, 100), (4, 3, 100), (4, 8, 19)])
@pytest.mark.parametrize("draw", [photo_dataset, picture_dataset])
def test_pictures_refuse(draw, arguments):
    with pytest.raises(InputError, match=f"got {arguments[0]}, {arguments[1]} and {arguments[2]}"):
        draw(*arguments, seed=0)


@pytest.mark.parametrize("arguments", [(0, 2, 100), (8, 1, 100), (8, 4, 19)])
def test_clusters_refuse(arguments):
    with pytest.raises(InputError, match=f"got {arguments[0]}, {arguments[1]} and {arguments[2]}"):
        cluster_dataset(*arguments, seed=0)
