"""``LearnedLR`` within the loops of other libraries."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from lrenv import LearnedLR

STEPS = 24


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 2)
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.seen.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        self.scheduler = LearnedLR(optimizer, steps)
        how = {"scheduler": self.scheduler, "interval": "step", **self.monitored}
        return {"optimizer": optimizer, "lr_scheduler": how}

    monitored: dict[str, Any] = {}  # noqa: RUF012


def points() -> TensorDataset:
    torch.manual_seed(1)
    x = torch.randn(96, 4)
    return TensorDataset(x, (x.sum(1) > 0).long())


def fit(module: Module, folder: Path, **kwargs: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=2,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **{"logger": False, "enable_checkpointing": False, **kwargs},
    )
    trainer.fit(module, DataLoader(points(), batch_size=8))
    return trainer


@pytest.mark.parametrize("monitored", [{}, {"reduce_on_plateau": True, "monitor": "train_loss"}])
def test_lightning_reports_losses_by_closure_or_monitor(
    tmp_path: Path, monitored: dict[str, Any]
) -> None:
    module = Module()
    module.monitored = monitored
    fit(module, tmp_path)

    scheduler = module.scheduler
    assert scheduler.controller.done
    window = scheduler.controller.observer.window
    assert window.loss[0].tolist() == pytest.approx(module.seen)
    assert len(set(window.lr[0].tolist())) > 5


def test_lightning_accumulates_and_resumes_exactly(tmp_path: Path) -> None:
    saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1)
    whole = Module()
    fit(whole, tmp_path, accumulate_grad_batches=2, callbacks=[saver], enable_checkpointing=True)
    assert whole.scheduler.controller.step == 12

    resumed = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=2,
        accelerator="cpu",
    )
    first = next(tmp_path.glob("epoch=0*.ckpt"))
    trainer.fit(resumed, DataLoader(points(), batch_size=8), ckpt_path=first)
    assert torch.equal(
        parameters_to_vector(resumed.parameters()), parameters_to_vector(whole.parameters())
    )
    assert resumed.scheduler.decisions == whole.scheduler.decisions


def test_accelerate_counts_optimizer_steps(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    torch.manual_seed(0)
    net, loader = nn.Linear(4, 2), DataLoader(points(), batch_size=8)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    net, optimizer, loader = accelerator.prepare(net, sgd, loader)
    scheduler = LearnedLR(optimizer, 8)
    prepared = accelerator.prepare_scheduler(scheduler)
    losses: list[list[float]] = [[]]
    for _ in range(2):
        for x, y in loader:
            with accelerator.accumulate(net):
                loss = nn.functional.cross_entropy(net(x), y)
                accelerator.backward(loss)
                losses[-1].append(loss.item())
                optimizer.step()
                prepared.step(loss)
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                losses.append([])

    assert scheduler.controller.step == 8
    assert scheduler.controller.done
    # A prepared scheduler is not told of the batches between optimizer steps.
    window = scheduler.controller.observer.window.loss[0].tolist()
    assert window == pytest.approx([batch[-1] for batch in losses[:-1]])


def scaled_run(
    fused: bool,
    scaler: torch.amp.GradScaler,
    steps: int,
    overflows: tuple[int, ...] = (),
    total_steps: int | None = None,
) -> tuple[LearnedLR, Tensor]:
    """Train by scaled gradients; returns the scheduler and the features of its decisions."""
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, fused=fused)
    scheduler, data = LearnedLR(optimizer, total_steps or steps), points()
    for step in range(steps):
        x, y = data[step * 8 % 96 : step * 8 % 96 + 8]
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step in overflows:
            net.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        scheduler.step(loss)
    assert parameters_to_vector(net.parameters()).isfinite().all()
    return scheduler, torch.tensor([list(d["features"].values()) for d in scheduler.decisions])


@pytest.mark.parametrize("fused", [False, True])
def test_measured_steps_that_overflow_are_not_counted(fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scheduler, seen = scaled_run(fused, scaler, 60, overflows=(0, 1, 2, 30))

    assert seen.isfinite().all()
    assert all(0 < d["lr"] < 1e3 for d in scheduler.decisions)
    assert torch.equal(seen[-1] != 0, scaled_run(False, scaler, 60)[1][-1] != 0)
    assert scheduler.controller.step == 56


@pytest.mark.parametrize(("fused", "counted"), [(False, 297), (True, 300)])
def test_steps_that_overflow_unmeasured_count_where_they_are_fused(fused, counted) -> None:
    overflows = (241, 242, 243)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scheduler, _ = scaled_run(fused, scaler, 300, overflows, total_steps=20_000)

    plan = scheduler.controller.plan
    assert all(plan.next_end(step) - step > plan.measured for step in overflows)
    assert scheduler.controller.step == counted


def test_fused_steps_of_scaled_gradients_are_measured_as_others() -> None:
    runs = []
    for fused in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=7)
        runs.append(scaled_run(fused, scaler, 40)[1])

    assert scaler.get_scale() > 100
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-3)


def test_a_tensor_lr_does_not_compile_the_step_anew() -> None:
    torch._dynamo.reset()
    net, counter = nn.Linear(4, 2), CompileCounter()
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, torch.tensor(0.1))
    scheduler = LearnedLR(optimizer, 40)

    @torch.compile(backend=counter)
    def update() -> None:
        with torch.no_grad():
            for param in params:
                param.sub_(optimizer.param_groups[0]["lr"] * param.grad)

    x, y = points().tensors
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(x), y)
        net.zero_grad()
        loss.backward()
        scheduler.before_step()  # hooks run outside what is compiled
        update()
        scheduler.after_step()
        scheduler.step(loss)

    assert counter.frame_count == 1
    assert len({d["lr"] for d in scheduler.decisions}) > 10


SHARDED = """
import sys, torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel
from torch.distributed.fsdp import fully_shard
from lrenv import LearnedLR

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
torch.manual_seed(1)
x = torch.randn(40, 8, 5)
y = (x.sum(2) > 0).long()
kind = sys.argv[1]
if kind == "fsdp":
    mesh = dist.init_device_mesh("cpu", (world,))
    fully_shard(net, mesh=mesh)
else:
    net = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(net.parameters())
scheduler = LearnedLR(optimizer, 40)
for step in range(40):
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    loss = nn.functional.cross_entropy(net(x[step, part]), y[step, part])
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    val = 1.0 / (step + 1) if rank == 0 and step % 3 == 0 else None
    scheduler.step(loss, val_loss=val)
torch.save([(d["lr"], list(d["features"].values())) for d in scheduler.decisions],
           f"{sys.argv[2]}/{kind}-{world}-{rank}.pt")
dist.destroy_process_group()
"""


def launch(kind: str, world: int, folder: Path) -> list[list[tuple[float, list[float]]]]:
    script = folder / "job.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", str(script), kind, str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{kind}-{world}-{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_processes_have_the_lr_of_one_with_the_whole_batch(tmp_path: Path, kind: str) -> None:
    (alone,) = launch("ddp", 1, tmp_path)
    first, second = launch(kind, 2, tmp_path)

    assert [lr for lr, _ in first] == [lr for lr, _ in second]
    features, expected = (torch.tensor([row for _, row in run]) for run in (first, alone))
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-2)
    assert [lr for lr, _ in first] == pytest.approx([lr for lr, _ in alone], rel=0.02)


def test_timm_calls_as_it_does() -> None:
    """Its optimizer factory gives groups an ``lr_scale``, which stays."""
    globals_ = runpy.run_path(str(Path(__file__).parent.parent / "examples/timm_loop.py"))
    scheduler, optimizer = globals_["scheduler"].scheduler, globals_["optimizer"]
    assert scheduler.controller.done
    assert scheduler.controller.observer.window.loss.max() < 5  # no accuracy among the losses
    assert scheduler.controller.observer.window.val_loss.isnan().all()
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    lrs = scheduler.get_last_lr()
    units = [lr / scale for lr, scale in zip(lrs, scales, strict=True)]
    assert units == pytest.approx([units[0]] * len(units))
    assert len(set(scales)) > 3
