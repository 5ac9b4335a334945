"""A timm model and optimizer under the default policy: ``python examples/timm_loop.py``.

timm's own training script asks for ``step_update(num_updates, metric)``; in a loop of yours, and
with the layer-wise decay of its optimizer factory, it is ``step(loss)`` as everywhere.
"""

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from lrenv import LearnedLR

STEPS, BATCH = 60, 16
torch.manual_seed(0)
images = torch.randn(256, 3, 32, 32)
labels = (images.mean((1, 2, 3)) > 0).long()
images[labels == 1] += 0.3

model = timm.create_model("test_vit", num_classes=2, img_size=32, pretrained=False)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75)
scheduler = LearnedLR(optimizer, total_steps=STEPS)

for step in range(STEPS):
    index = torch.randint(len(images), (BATCH,))
    loss = nn.functional.cross_entropy(model(images[index]), labels[index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step(loss)
    if step % 20 == 0 or step == STEPS - 1:
        lrs = scheduler.get_last_lr()
        print(f"step {step:3d}  loss {loss.item():.4f}  LR {min(lrs):.2e} to {max(lrs):.2e}")
