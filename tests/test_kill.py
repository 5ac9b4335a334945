"""Jobs that are killed at random steps, again and again, end as those that are not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

KILLS = 20
COMMON = """
import json, os, sys, time, warnings
from pathlib import Path
import torch
from torch import nn
warnings.filterwarnings("ignore")
folder, pause = Path(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(0)

def finish(model, scheduler):
    torch.save({"weights": model.state_dict(), "decisions": scheduler.decisions}, folder / "end.pt")
"""
JOBS = {
    "loop": COMMON
    + """
from lrenv import LearnedLR
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters())
scheduler = LearnedLR(optimizer, 300)
parts, start = {"model": model, "optimizer": optimizer, "scheduler": scheduler}, 0
if (folder / "checkpoint.pt").exists():
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    start = saved.pop("step")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
(folder / "started").touch()
for step in range(start, 300):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
    optimizer.zero_grad(); loss.backward(); optimizer.step(); scheduler.step(loss)
    time.sleep(pause)
    if step % 7 == 6:
        state = {"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}
        torch.save(state, folder / "new.pt")
        os.replace(folder / "new.pt", folder / "checkpoint.pt")
finish(model, scheduler)
""",
    "trainer": COMMON
    + """
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from lrenv.huggingface import use_learned_lr
shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **shape))
rows = [{"input_ids": [(i * 3 + k) % 16 for k in range(6)]} for i in range(64)]
data = [{**row, "labels": row["input_ids"]} for row in rows]
args = TrainingArguments(str(folder), max_steps=120, save_steps=7, per_device_train_batch_size=4,
                         report_to="none", use_cpu=True, disable_tqdm=True, save_total_limit=2)
class Slow(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        time.sleep(pause)
trainer = Trainer(model, args, train_dataset=data, callbacks=[Slow()])
use_learned_lr(trainer)
whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
last = max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)
(folder / "started").touch()
trainer.train(resume_from_checkpoint=str(last) if last else None)
finish(trainer.model, trainer.lr_scheduler)
""",
    "lightning": COMMON
    + """
import lightning
from torch.utils.data import DataLoader, TensorDataset
from lrenv import LearnedLR
class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
    def training_step(self, batch, batch_idx):
        time.sleep(pause)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        self.scheduler = LearnedLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer,
                "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}
class Keep(lightning.Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(folder / "new.ckpt")
        os.replace(folder / "new.ckpt", folder / "last.ckpt")
x = torch.randn(64, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)
module = Module()
trainer = lightning.Trainer(max_epochs=40, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", callbacks=[Keep()])
last = folder / "last.ckpt"
(folder / "started").touch()
trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
finish(module, module.scheduler)
""",
}


def run(script: Path, folder: Path, pause: float) -> subprocess.Popen[bytes]:
    (folder / "started").unlink(missing_ok=True)
    log = (folder / "log.txt").open("w")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(pause)]
    return subprocess.Popen(command, env=env, stdout=log, stderr=log)


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_job_ends_as_one_that_is_not(tmp_path: Path, job: str) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOBS[job])
    ends, kills, draw = {}, 0, random.Random(job)
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        while not (folder / "end.pt").exists():
            killing = name == "killed" and kills < KILLS
            process = run(script, folder, 0.08 if killing else 0.0)
            while killing and not (folder / "started").exists() and process.poll() is None:
                time.sleep(0.05)
            if killing:
                time.sleep(draw.uniform(0.1, 0.9))
                process.send_signal(signal.SIGKILL)
                kills += 1
            assert process.wait() == (-signal.SIGKILL if killing else 0), (
                folder / "log.txt"
            ).read_text()[-2000:]
        ends[name] = torch.load(folder / "end.pt", weights_only=True)

    assert kills == KILLS
    assert ends["killed"]["decisions"] == ends["whole"]["decisions"]
    assert len(ends["whole"]["decisions"]) > 40
    for key, value in ends["whole"]["weights"].items():
        assert torch.equal(ends["killed"]["weights"][key], value)
