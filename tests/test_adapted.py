"""Pretrained decoders that are fine-tuned."""

import pytest
import torch

from lrenv.errors import InputError
from lrenv.trainees import adapted
from lrenv.trainees.adapted import AdaptedDecoderSpec, LowRankUpdate, pretrained
from lrenv.trainees.specs import initial_model
from lrenv.trainees.stacked import trained
from lrenv.trainees.text import CHARACTERS, encipher, markov_dataset, python_docs, python_source

SPEC = AdaptedDecoderSpec(8, 1, 2, rank=2, batch_size=4, total_steps=10)


@pytest.fixture(autouse=True)
def short_pretraining(monkeypatch):
    monkeypatch.setattr(adapted, "_STEPS", 40)


def test_the_update_starts_at_nothing_and_is_a_product():
    update = LowRankUpdate((3, 5), 2, alpha=6.0)
    weight = torch.randn(3, 5)

    assert torch.equal(update(weight), weight)
    with torch.no_grad():
        update.b.fill_(1.0)
    expected = weight + 3.0 * update.a.sum(0).expand(3, 5)
    torch.testing.assert_close(update(weight), expected)


def test_pretraining_is_done_once_and_helps(monkeypatch):
    data = python_docs(9)
    fresh = SPEC.build(data)
    again = pretrained(SPEC, 9)
    monkeypatch.setattr(adapted, "_pretrain", None)

    assert all(torch.equal(pretrained(SPEC, 9)[name], again[name]) for name in again)
    loss, _, count = SPEC.score(fresh, data.x_val[:500], data.y_val[:500])
    assert loss.item() / count < 0.9 * torch.log(torch.tensor(float(len(CHARACTERS)))).item()


@pytest.mark.parametrize(("rank", "n_trained"), [(2, 6), (0, 18)])
def test_lora_trains_its_matrices_and_rank_0_everything(rank, n_trained):
    spec = AdaptedDecoderSpec(8, 1, 2, rank=rank)
    first, same, other = (initial_model(spec, python_docs(9), seed) for seed in (1, 1, 2))

    assert len(trained(first)) == n_trained
    assert all(map(torch.equal, trained(first), trained(same)))
    assert all(map(torch.equal, trained(first), trained(other))) == (rank == 0)


def test_a_negative_rank():
    with pytest.raises(InputError, match="rank of at least 0, got -1"):
        AdaptedDecoderSpec(rank=-1)


def test_a_cipher_is_the_same_everywhere_and_moves_its_share():
    plain = markov_dataset(20, 6, seed=0, n_samples=100)
    moved = encipher(plain, 0.3, seed=1)
    maps = {
        (a, b)
        for part in ("x_train", "y_train", "x_test", "y_val")
        for a, b in zip(
            getattr(plain, part).flatten().tolist(),
            getattr(moved, part).flatten().tolist(),
            strict=True,
        )
    }

    assert len(maps) == 20
    assert len({b for _, b in maps}) == 20
    assert sum(a != b for a, b in maps) == 6
    assert not torch.equal(encipher(plain, 0.3, seed=2).x_train, moved.x_train)
    with pytest.raises(InputError, match=r"share of tokens in \(0, 1\], got 1.5"):
        encipher(plain, 1.5, seed=0)


def test_source_code_is_another_text_than_the_reference():
    source, docs = python_source(16), python_docs(16)

    assert source.name.startswith("python-source-3.")
    assert len(source.x_train) > len(docs.x_train) > len(source.x_test) > 500
    assert torch.equal(source.x_val[:, 1:], source.y_val[:, :-1])
