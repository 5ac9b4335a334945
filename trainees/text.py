"""Data sets of tokens: real text that comes with Python, and random Markov chains."""

from __future__ import annotations

import platform
import random
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.data import SPLIT_SEED, Dataset, split_rows

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The vocabulary of characters; others read as spaces."""

_MODULES = (
    "argparse ast calendar cmd codecs configparser csv difflib doctest enum fractions ftplib "
    "functools gettext imaplib inspect mailbox optparse pdb pickletools platform random "
    "shutil smtplib statistics subprocess tarfile textwrap traceback typing"
)
_RANK = 8  # of the random transition logits


def python_docs(context: int) -> Dataset:
    """Characters of the language reference that Python carries, in sequences of ``context``.

    Its topics are split 80/10/10 at random, so that no topic is in two splits.

    Args:
        context: Tokens of a sequence; the labels are the sequence shifted by one.
    """
    return _characters(topics, context, "python-docs", "the language reference")


def python_source(context: int) -> Dataset:
    """Characters of modules of Python's standard library, in sequences of ``context``.

    They are split 80/10/10 at random, so that no module is in two splits.

    Args:
        context: Tokens of a sequence; the labels are the sequence shifted by one.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = _MODULES.split()
    modules = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}
    return _characters(modules, context, "python-source", "modules of the standard library")


def _characters(texts: Mapping[str, str], context: int, name: str, content: str) -> Dataset:
    _check_context(context)
    names = sorted(texts)
    random.Random(SPLIT_SEED).shuffle(names)
    first, second = round(0.8 * len(names)), round(0.9 * len(names))
    parts = names[:first], names[first:second], names[second:]
    index = {character: i for i, character in enumerate(CHARACTERS)}
    tokens = [
        torch.tensor([index.get(c, index[" "]) for key in part for c in texts[key]])
        for part in parts
    ]
    rows = [
        t[: (len(t) - 1) // context * context + 1].unfold(0, context + 1, context) for t in tokens
    ]
    version = platform.python_version()
    note = f"{content} in Python {version}, characters"
    # The text differs between versions, and the name tells results on them apart.
    return _shifted(rows, f"{name}-{version}", len(CHARACTERS), note)


def encipher(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Let a share of the tokens change places, the same ones everywhere.

    Raises:
        InputError: The share is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"Expected a share of tokens in (0, 1], got {share}.")
    generator = torch.Generator().manual_seed(seed)
    n = dataset.n_classes
    moved = torch.randperm(n, generator=generator)[: max(2, round(share * n))]
    cipher = torch.arange(n)
    cipher[moved] = moved.roll(1)
    parts: dict[str, Any] = {
        f"{side}_{part}": cipher[getattr(dataset, f"{side}_{part}")]
        for side in "xy"
        for part in ("train", "val", "test")
    }
    return replace(dataset, name=f"{dataset.name}-cipher", **parts)


def markov_dataset(n_tokens: int, context: int, seed: int, n_samples: int = 5000) -> Dataset:
    """Sequences of a random Markov chain of order 2, whose transition logits have rank 8.

    Args:
        n_tokens: Size of the vocabulary.
        context: Tokens of a sequence; the labels are the sequence shifted by one.
        seed: Seed of chain and sequences.
        n_samples: Sequences, split 60/20/20.
    """
    _check_context(context)
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    left, right, out = *factor(2, n_tokens, _RANK), factor(_RANK, n_tokens)
    steps = [torch.randint(n_tokens, (n_samples,), generator=generator) for _ in range(2)]
    for _ in range(context - 1):
        p = torch.softmax((left[steps[-1]] + right[steps[-2]]) @ out * 0.5, 1)
        steps.append(torch.multinomial(p, 1, generator=generator)[:, 0])
    rows = torch.stack(steps, 1)
    parts = [rows[part] for part in split_rows(n_samples)]
    note = f"sequences of a random Markov chain of order 2, seed {seed}"
    return _shifted(parts, f"markov-{n_tokens}", n_tokens, note)


CHARACTER_TEXTS: dict[str, Callable[[int], Dataset]] = {
    "python-docs": python_docs,
    "python-source": python_source,
}
"""Texts of characters, by name; each takes the tokens of a sequence."""


def _check_context(context: int) -> None:
    if context < 1:
        raise InputError(f"Expected a context of at least 1 token, got {context}.")


def _shifted(
    parts: list[Tensor] | tuple[Tensor, ...], name: str, n_classes: int, note: str
) -> Dataset:
    """Split sequences ``(n, t + 1)`` into inputs and labels, ``(n, t)`` each."""
    (x_train, y_train), (x_val, y_val), (x_test, y_test) = (
        (rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in parts
    )
    return Dataset(
        name=name,
        x_train=x_train,
        y_train=y_train,
        x_val=x_val,
        y_val=y_val,
        x_test=x_test,
        y_test=y_test,
        n_classes=n_classes,
        image_shape=None,
        note=note,
    )
