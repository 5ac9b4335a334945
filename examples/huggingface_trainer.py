"""The Hugging Face Trainer under the default policy: ``python examples/huggingface_trainer.py``."""

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lrenv.huggingface import use_learned_lr


class Counting(Dataset):
    """Sequences of numbers that count up, modulo 32."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return 512

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return tokens, which are their own labels."""
        tokens = (index * 7 + torch.arange(16)) % 32
        return {"input_ids": tokens, "labels": tokens}


config = LlamaConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
)
trainer = Trainer(
    model=LlamaForCausalLM(config),
    args=TrainingArguments(
        output_dir="runs/huggingface",
        per_device_train_batch_size=16,
        max_steps=100,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=Counting(),
)
use_learned_lr(trainer)
trainer.train()
