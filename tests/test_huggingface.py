"""``LearnedLR`` in the Hugging Face Trainer and in trl's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from lrenv import InputError, LearnedLR
from lrenv.huggingface import use_learned_lr
from lrenv.observation import FEATURES, columns_of

STEPS = 24


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **shape))


def sequences() -> Dataset:
    rows = [[(i * 3 + k) % 16 for k in range(4 + i % 3)] for i in range(64)]
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    full = {"input_ids": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
        for name, fill in full.items()
    }


def hf_trainer(folder: Path, **changes: Any) -> Trainer:
    settings = {
        "max_steps": STEPS,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        **changes,
    }
    args = TrainingArguments(str(folder), **settings)
    return Trainer(tiny_llama(), args, pad, sequences(), eval_dataset=sequences())


def test_the_trainer_reports_the_losses_it_logs(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    use_learned_lr(trainer)
    trainer.train()

    scheduler = trainer.lr_scheduler
    assert isinstance(scheduler, LearnedLR)
    assert scheduler.controller.done
    logged = [row for row in trainer.state.log_history if "loss" in row]
    window = scheduler.controller.observer.window
    assert window.loss[0].tolist() == pytest.approx([row["loss"] for row in logged], abs=1e-4)
    assert window.lr[0].tolist() == pytest.approx([row["learning_rate"] for row in logged])
    evaluated = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    seen = list(dict.fromkeys(window.val_loss[0][~window.val_loss[0].isnan()].tolist()))
    assert seen == pytest.approx(evaluated[: len(seen)], rel=1e-4)
    assert len(seen) == 7  # the last one comes behind the last decision


def test_a_training_resumes_exactly(tmp_path: Path) -> None:
    runs = []
    for resumed in (False, True):
        trainer = hf_trainer(tmp_path, save_strategy="steps", save_steps=10)
        use_learned_lr(trainer)
        checkpoint = str(tmp_path / "checkpoint-10") if resumed else None
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append(
            (parameters_to_vector(trainer.model.parameters()), trainer.lr_scheduler.decisions)
        )

    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_a_scheduler_may_be_given_to_the_trainer(tmp_path: Path) -> None:
    made, given = hf_trainer(tmp_path), hf_trainer(tmp_path)
    optimizer = given.create_optimizer()
    given.lr_scheduler = LearnedLR(optimizer, STEPS, steps_per_epoch=len(sequences()) / 8)
    for trainer in (made, given):
        use_learned_lr(trainer)
        trainer.train()

    assert given.lr_scheduler.controller.done
    seen, expected = ([d["lr"] for d in t.lr_scheduler.decisions] for t in (given, made))
    assert seen == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "given", "epochs"),
    [
        ({"max_steps": -1, "num_train_epochs": 3.0}, {}, 3.0),
        ({"per_device_train_batch_size": 5}, {}, STEPS / 7),  # 13 batches, two by two
        ({"per_device_train_batch_size": 64}, {}, STEPS),
        ({}, {"steps_per_epoch": 6.0}, STEPS / 6),
    ],
)
def test_the_trainer_tells_how_long_an_epoch_is(
    tmp_path: Path, changes: dict[str, Any], given: dict[str, float], epochs: float
) -> None:
    trainer = hf_trainer(tmp_path, **changes)
    use_learned_lr(trainer, **given)
    trainer.train()

    token = trainer.lr_scheduler.controller.observer.tokens[0][0]
    assert token[FEATURES.index("epochs")].item() == pytest.approx(math.log(epochs))


def test_a_training_on_a_stream_has_no_epochs(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path)
    trainer.train_dataset = sequences().to_iterable_dataset()
    use_learned_lr(trainer)
    trainer.train()

    token = trainer.lr_scheduler.controller.observer.tokens[0][0]
    assert token[columns_of("epoch")].abs().max() == 0


def test_another_scheduler_is_refused(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    with pytest.raises(InputError, match=r"no scheduler in the trainer.* got ConstantLR; leave"):
        use_learned_lr(trainer)


def test_bad_arguments_are_refused_ahead_of_the_training(tmp_path: Path) -> None:
    trainer = hf_trainer(tmp_path)
    with pytest.raises(TypeError, match="total_steps"):
        use_learned_lr(trainer, total_steps=100)
    with pytest.raises(TypeError, match="foo"):
        use_learned_lr(trainer, foo=1)
    with pytest.raises(InputError, match="steps_per_epoch to be a positive number"):
        use_learned_lr(trainer, steps_per_epoch="x")
    use_learned_lr(trainer)
    with pytest.raises(InputError, match="call this once"):
        use_learned_lr(trainer)


def test_sft_trainer_is_scheduled(tmp_path: Path) -> None:
    args = trl.SFTConfig(
        str(tmp_path),
        max_steps=STEPS,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    words = Tokenizer(models.WordLevel({str(k): k for k in range(16)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    data = sequences().remove_columns("labels")
    trainer = trl.SFTTrainer(tiny_llama(), args, train_dataset=data, processing_class=tokenizer)
    use_learned_lr(trainer)
    trainer.train()

    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    window = trainer.lr_scheduler.controller.observer.window
    assert window.loss[0].tolist() == pytest.approx(logged, abs=1e-4)
