"""Text as the tokens of a language model.

Shape legend: n sequences, t tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrenv.errors import InputError
from lrenv.trainees.data import Dataset
from lrenv.trainees.instructions import Instructions, Pair
from lrenv.trainees.language_model import load_tokenizer
from lrenv.trainees.specs import IGNORED


def instruction_dataset(
    data: Instructions, model: str, max_length: int, all_tokens: bool
) -> Dataset:
    """Encode a set of instructions.

    Args:
        data: The instructions.
        model: The language model whose tokenizer is used.
        max_length: Tokens of a sequence, at most.
        all_tokens: Whether the tokens of a prompt count in the loss.

    Raises:
        InputError: A split is empty, or no response of it fits.
    """
    tokenizer = load_tokenizer(model)
    parts: dict[str, Tensor] = {}
    for split in ("train", "val", "test"):
        pairs = getattr(data, split)
        try:
            x, y = encode(pairs, tokenizer, max_length, all_tokens)
        except InputError as error:
            raise InputError(f"{data.name}, {split} split: {error}") from None
        parts |= {f"x_{split}": x, f"y_{split}": y}
    return Dataset(
        name=data.name, n_classes=len(tokenizer), image_shape=None, note=data.note, **parts
    )


def encode(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int, all_tokens: bool = False
) -> tuple[Tensor, Tensor]:
    """Encode prompts and responses by the chat template of a tokenizer.

    Args:
        pairs: The pairs.
        tokenizer: The tokenizer.
        max_length: Tokens of a sequence, at most; the end of a longer one is cut off, and a pair
            of which no response is left is left out.
        all_tokens: Whether the tokens of the prompt count too.

    Returns:
        Tokens padded behind, and the label of each: the next token, or ``IGNORED`` for the prompt
        and the padding. ``(n, t)`` each, int64.

    Raises:
        InputError: No pair is left.
    """
    rows = []
    for pair in pairs:
        prompt = prompt_tokens(pair.prompt, tokenizer)
        response = tokenizer(pair.response, add_special_tokens=False)["input_ids"]
        tokens = [*prompt, *response, tokenizer.eos_token_id][: max_length + 1]
        if len(prompt) < len(tokens):
            rows.append((tokens, 1 if all_tokens else len(prompt)))
    if not rows:
        raise InputError(
            f"Expected at least one pair with a response within {max_length} tokens, got none of "
            f"{len(pairs)}; raise max_length."
        )
    length = max(len(tokens) for tokens, _ in rows) - 1
    x = torch.full((len(rows), length), tokenizer.pad_token_id)
    y = torch.full((len(rows), length), IGNORED)
    for i, (tokens, first) in enumerate(rows):
        x[i, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        y[i, first - 1 : len(tokens) - 1] = torch.tensor(tokens[first:])
    return x, y


def prompt_tokens(prompt: str, tokenizer: Any) -> list[int]:
    """Encode a prompt up to where the response begins."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt + "\n")["input_ids"])
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text_sequences(text: str, tokenizer: Any, n: int, length: int) -> tuple[Tensor, Tensor]:
    """Cut the start of a text into ``n`` sequences of ``length`` tokens; all tokens count.

    Returns:
        Tokens and the label of each, ``(n, length)``.
    """
    tokens = tokenizer(text[: 20 * n * length], add_special_tokens=False)["input_ids"]
    if len(tokens) <= n * length:
        raise InputError(
            f"Expected a text of more than {n * length} tokens, got {len(tokens)}; ask for less."
        )
    stream = torch.tensor(tokens)
    x, y = stream[: n * length], stream[1 : n * length + 1]
    return x.view(n, length), y.view(n, length)
