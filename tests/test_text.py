"""Data sets of tokens: real text and Markov chains."""

from pydoc_data.topics import topics

import pytest
import torch

from lrenv.errors import InputError
from lrenv.trainees.tasks import DataSpec, load_data
from lrenv.trainees.text import CHARACTERS


def test_markov_chains_and_text_shift_their_labels_by_one():
    chain = load_data(DataSpec("markov", n_classes=6, context=5, seed=1))
    text = load_data(DataSpec("python-docs", context=16, n_train=100))

    assert chain.x_train.shape == (3000, 5)
    assert text.x_train.shape == (100, 16)
    for data in (chain, text):
        assert torch.equal(data.x_train[:, 1:], data.y_train[:, :-1])
        assert data.y_train.max() < data.n_classes
    # The continuation of a pair of tokens is predictable, which a model can learn.
    pairs = chain.x_train[:, -2] * 6 + chain.x_train[:, -1]
    counts = torch.zeros(36, 6).index_put_((pairs, chain.y_train[:, -1]), torch.ones(3000), True)
    assert counts.amax(1).sum() / 3000 > 1.5 / 6
    spelled = "".join(CHARACTERS[i] for i in text.x_train.flatten())
    assert " the " in spelled


def test_topics_of_the_text_are_in_one_split_alone():
    data = load_data(DataSpec("python-docs", context=32))
    texts = [
        "".join(CHARACTERS[i] for i in data.split(part)[0].flatten())
        for part in ("train", "val", "test")
    ]
    # what a topic begins with, but for the few that share it with another
    starts = {text[:80] for text in topics.values() if len(text) > 200 and text.isascii()}
    found = [[start in text for text in texts] for start in starts if "\t" not in start]

    assert len(found) > 20
    assert all(sum(row) == 1 for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["markov", "python-docs"])
def test_a_context_is_needed(name):
    with pytest.raises(InputError, match="a context of at least 1 token, got 0"):
        load_data(DataSpec(name))
