"""Lightning under the default policy: ``python examples/lightning_module.py``."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lrenv import LearnedLR


class Classifier(lightning.LightningModule):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer and the scheduler, which steps behind every optimizer step."""
        optimizer = torch.optim.AdamW(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs  # which alone bound this run
        scheduler = LearnedLR(optimizer, total_steps=steps, steps_per_epoch=steps / epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


inputs = torch.randn(2048, 20)
labels = (inputs[:, :10].square().sum(1) > inputs[:, 10:].square().sum(1)).long()
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
trainer = lightning.Trainer(max_epochs=5, logger=False, enable_checkpointing=False)
model = Classifier()
trainer.fit(model, loader)
print("loss", trainer.callback_metrics["train_loss"].item())
