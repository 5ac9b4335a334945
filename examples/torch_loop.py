"""A plain torch loop under the default policy: ``python examples/torch_loop.py``."""

import torch
from torch import nn

from lrenv import LearnedLR

torch.manual_seed(0)
STEPS, BATCH = 300, 64
inputs = torch.randn(2000, 20)
labels = (inputs[:, :10].square().sum(1) > inputs[:, 10:].square().sum(1)).long()

model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 2))
optimizer = torch.optim.AdamW(model.parameters())  # its LR is a hint that changes nothing
scheduler = LearnedLR(optimizer, total_steps=STEPS, steps_per_epoch=len(inputs) / BATCH)

for step in range(STEPS):
    index = torch.randint(len(inputs), (BATCH,))
    loss = nn.functional.cross_entropy(model(inputs[index]), labels[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step(loss)
    if step % 50 == 0 or step == STEPS - 1:
        print(f"step {step:4d}  loss {loss.item():.4f}  LR {scheduler.get_last_lr()[0]:.2e}")
