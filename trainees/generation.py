"""What a fine-tuned language model says and forgot: greedy decoding, ROUGE, general text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import nn

from lrenv.errors import InputError
from lrenv.trainees.encoding import prompt_tokens, text_sequences
from lrenv.trainees.language_model import import_llm
from lrenv.trainees.specs import RunSpec

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_GENERAL_SEQUENCES, _GENERAL_LENGTH = 16, 128


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 128,
    batch_size: int = 32,
) -> list[str]:
    """Answer prompts by greedy decoding, several at a time.

    Args:
        model: A causal language model, with or without LoRA.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        max_new_tokens: Tokens of an answer, at most.
        batch_size: Prompts at a time.
    """
    answers: list[str] = []
    language_model: Any = model
    with _evaluating(model):
        for first in range(0, len(prompts), batch_size):
            rows = [prompt_tokens(p, tokenizer) for p in prompts[first : first + batch_size]]
            length = max(map(len, rows))
            # Padded in front, so that every answer follows its prompt at once.
            tokens = torch.tensor([[tokenizer.pad_token_id] * (length - len(r)) + r for r in rows])
            mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
            device = language_model.device
            out = language_model.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            answers += tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    return answers


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2, -L and -Lsum with stemming (Lin 2004), by name.

    Raises:
        InputError: There are no answers, or not one for each reference.
    """
    if not answers or len(answers) != len(references):
        raise InputError(
            f"Expected one answer for each reference, got {len(answers)} and {len(references)}."
        )
    scorer = import_llm("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(references, answers, strict=True)]
    return {name: sum(s[name].fmeasure for s in scores) / len(scores) for name in ROUGE}


@torch.no_grad()
def general_loss(spec: RunSpec, model: nn.Module, tokenizer: Any) -> float:
    """Mean loss on general English text, the reference that Python carries.

    What fine-tuning adds to it is what the model forgot.
    """
    text = "\n".join(topics[name] for name in sorted(topics))
    device = next(model.parameters()).device
    sequences = text_sequences(text, tokenizer, _GENERAL_SEQUENCES, _GENERAL_LENGTH)
    x, y = (part.to(device) for part in sequences)
    with _evaluating(model):
        parts = zip(x.split(spec.eval_batch), y.split(spec.eval_batch), strict=True)
        losses, _, counts = zip(*(spec.score(model, *part) for part in parts), strict=True)
    mean: float = float(torch.stack(losses).sum()) / sum(counts)
    return mean


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and back to what it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
