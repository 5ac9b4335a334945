"""LRBench's utility metrics, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from lrenv.trainees.autoencoder import AutoencoderSpec
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.data import Dataset
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import IGNORED, RunSpec
from lrenv.trainees.tasks import DataSpec, Task, load_data
from lrenv.training.compare import _scores
from lrenv.training.metrics import Utility, confidences, label_ranks, utilities, utility

PROBABILITIES = torch.tensor([[0.7, 0.5, 0.1, 0.6], [0.2, 0.3, 0.8, 0.3], [0.1, 0.2, 0.1, 0.1]])
LABELS = torch.tensor([0, 0, 1, 2])
STARTS = {"train": 0, "val": 4, "test": 8}


def test_utility_by_hand() -> None:
    found = utility(PROBABILITIES.log() + 3.0, LABELS)  # a constant changes no probability
    assert found is not None
    assert found.top1 == 0.75
    assert found.top5 == 1.0
    # right with 0.7, 0.5 (class 0) and 0.8 (class 1)
    assert found.confidence == pytest.approx(2 / 3, rel=1e-6)
    assert found.confidence_std == pytest.approx((0.14 / 9) ** 0.5, rel=1e-6)
    assert found.cdac == pytest.approx(0.1, rel=1e-6)


def test_the_label_is_among_the_five_likeliest() -> None:
    logits = torch.arange(7.0)[:, None].expand(-1, 7)
    assert label_ranks(logits[None], torch.arange(7)).tolist() == [[6, 5, 4, 3, 2, 1, 0]]
    found = utility(logits, torch.arange(7))
    assert found is not None
    assert found.top5 == pytest.approx(5 / 7)
    assert found.top1 == pytest.approx(1 / 7)
    assert found.confidence_std == found.cdac == 0.0


def test_ties_are_broken_as_argmax_does() -> None:
    logits = torch.tensor([[[1.0], [2.0], [2.0]]])
    assert label_ranks(logits, torch.tensor([1])).item() == 0
    assert label_ranks(logits, torch.tensor([2])).item() == 1
    assert confidences(torch.zeros(1, 4, 1)).item() == pytest.approx(0.25)


def test_runs_in_batches_are_those_alone() -> None:
    logits = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    logits[1, 2, 7] = torch.nan
    batches = [(logits[..., part], labels[part]) for part in (slice(0, 25), slice(25, 40))]
    together = utilities(batches)
    assert together[1] is utility(logits[1], labels) is None
    for run in (0, 2):
        assert vars(together[run]) == pytest.approx(vars(utility(logits[run], labels)), rel=1e-12)
    assert together[0] != together[2]


def test_without_right_predictions_there_is_no_confidence() -> None:
    assert utility(torch.tensor([[1.0], [0.0]]), torch.tensor([1])) == Utility(
        0.0, 1.0, None, None, None
    )


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (
            MLPSpec((8,), batch_size=8, total_steps=4),
            DataSpec("teacher", projection=6, n_classes=3),
        ),
        (
            DecoderSpec(8, 1, 2, batch_size=8, total_steps=4),
            DataSpec("markov", n_classes=7, context=6),
        ),
    ],
)
def test_single_and_batched_trainees_predict_alike(spec: RunSpec, data: DataSpec) -> None:
    dataset = load_data(data)
    single = SingleTrainee(spec, dataset, 3)
    batched = BatchedTrainee([spec] * 2, dataset, [3, 4])
    alone, both = (utilities(t.logits("test")) for t in (single, batched))
    assert alone[0] is not None
    assert both[0] is not None
    assert both[0].top1 == pytest.approx(float(single.evaluate("test")[1]))
    for name, value in vars(alone[0]).items():
        assert vars(both[0])[name] == pytest.approx(value, rel=1e-4), name
    assert both[1] != both[0]
    assert single.model.training


def test_looped_models_predict_the_tokens_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(3, 90, (12, 9), generator=generator)
    y = torch.randint(3, 90, (12, 9), generator=generator)
    y[:, :4] = IGNORED
    splits = {f"{k}_{s}": t[i : i + 4] for k, t in (("x", x), ("y", y)) for s, i in STARTS.items()}
    data = Dataset(name="drawn", n_classes=259, image_shape=None, note="drawn", **splits)
    spec = LoRASpec(model="tiny-llama", batch_size=2, total_steps=2, rank=1)
    batched = BatchedTrainee([spec], data, [0])
    ((logits, labels),) = batched.logits("test")
    assert logits.shape == (1, 259, 20)
    assert labels.tolist() == y[8:, 4:].flatten().tolist()
    loss = torch.nn.functional.cross_entropy(logits[0].T, labels)
    assert loss.item() == pytest.approx(float(batched.evaluate("test")[0]), rel=1e-5)


def test_scores_of_trainees_that_classify_and_of_others(tiny_task: Task) -> None:
    data = load_data(tiny_task.data)
    trainee = SingleTrainee(tiny_task.spec, data, 3)
    (scores,) = _scores(trainee)
    n_test = len(data.x_test)
    train, test = trainee.evaluate("train", n_test)[0], trainee.evaluate("test")[0]
    assert scores.extras["loss_gap"] == pytest.approx(abs(float(test - train)))
    assert 0.0 < scores.extras["confidence"] < 1.0
    assert scores.extras["top5"] == 1.0  # of 3 classes

    spec = AutoencoderSpec(hidden=(3,), batch_size=8, total_steps=4)
    for other in (SingleTrainee(spec, data, 3), BatchedTrainee([spec], data, [3])):
        (scores,) = _scores(other)
        assert scores.extras.pop("loss_gap") > 0.0
        assert set(scores.extras.values()) == {None}

    trainee.parameters()[0].fill_(torch.nan)
    (scores,) = _scores(trainee)
    assert set(scores.extras.values()) == {None}
