"""An accelerate loop: ``python examples/accelerate_loop.py``, or ``accelerate launch`` it."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lrenv import LearnedLR

EPOCHS = 4
accelerator = Accelerator(gradient_accumulation_steps=2)
torch.manual_seed(0)
inputs = torch.randn(2048, 20)
labels = (inputs[:, :10].square().sum(1) > inputs[:, 10:].square().sum(1)).long()
loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), loader)
# an epoch ends with an optimizer step, be it of fewer batches
steps = EPOCHS * -(-len(loader) // accelerator.gradient_accumulation_steps)
# It counts optimizer steps itself, in every process: there is no need to prepare it.
scheduler = LearnedLR(optimizer, total_steps=steps, steps_per_epoch=steps / EPOCHS)

for epoch in range(EPOCHS):
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()
    accelerator.print(f"epoch {epoch}  loss {loss.item():.4f}  LR {scheduler.get_last_lr()[0]:.2e}")
