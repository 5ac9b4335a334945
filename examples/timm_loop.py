"""timm's models, optimizers and calls: ``python examples/timm_loop.py``."""

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from lrenv import LearnedLR
from lrenv.timm import TimmScheduler

EPOCHS, PER_EPOCH, BATCH = 3, 20, 16
torch.manual_seed(0)
images = torch.randn(256, 3, 32, 32)
labels = (images.mean((1, 2, 3)) > 0).long()
images[labels == 1] += 0.3

model = timm.create_model("test_vit", num_classes=2, img_size=32, pretrained=False)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75)
steps = EPOCHS * PER_EPOCH
scheduler = TimmScheduler(LearnedLR(optimizer, total_steps=steps, steps_per_epoch=PER_EPOCH))

num_updates = 0
for epoch in range(EPOCHS):
    for _ in range(PER_EPOCH):
        index = torch.randint(len(images), (BATCH,))
        loss = nn.functional.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_updates += 1
        scheduler.step_update(num_updates, metric=loss)
    scheduler.step(epoch + 1, metric=50.0)  # such as the top-1 accuracy
    lrs = [group["lr"] for group in optimizer.param_groups]
    print(f"epoch {epoch}  loss {loss.item():.4f}  LR {min(lrs):.2e} to {max(lrs):.2e}")
