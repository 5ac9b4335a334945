"""skorch under the default policy: ``python examples/skorch_net.py``."""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import nn

from lrenv import LearnedLR

EPOCHS, BATCH = 6, 64
torch.manual_seed(0)
inputs = torch.randn(2048, 20)
labels = (inputs[:, :10].square().sum(1) > inputs[:, 10:].square().sum(1)).long()
per_epoch = -(-len(inputs) // BATCH)
schedule = LRScheduler(
    policy=LearnedLR,
    total_steps=EPOCHS * per_epoch,
    steps_per_epoch=per_epoch,
    step_every="batch",
)

net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.AdamW,
    max_epochs=EPOCHS,
    batch_size=BATCH,
    train_split=None,
    callbacks=[schedule],
)
net.fit(inputs, labels)
print("loss", net.history[-1, "train_loss"])
