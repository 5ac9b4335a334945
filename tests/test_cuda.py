"""Runs on a GPU agree with those on the CPU, and do not wait for it between decisions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrenv.controller import Controller, run_interval
from lrenv.policies.frozen import load_policy
from lrenv.scheduler import LearnedLR
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.families import training_task
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.finetune import finetune
from lrenv.training.settings import FinetuneSettings, LanguageModelSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS = 60
# one number of the family "general" each: an MLP, a small network, a decoder, LoRA, another MLP
NUMBERS = (0, 1, 3, 5, 7)


def batch(task: Task, device: str, n_runs: int = 3) -> BatchedTrainee:
    return BatchedTrainee([task.spec] * n_runs, load_data(task.data), range(n_runs), device=device)


@pytest.mark.parametrize("number", NUMBERS)
def test_losses_equal_those_on_the_cpu(number: int) -> None:
    task = training_task(number, "general")
    task = replace(task, spec=replace(task.spec, total_steps=STEPS))
    on_cpu, on_gpu = batch(task, "cpu"), batch(task, "cuda")
    for _ in range(20):
        torch.testing.assert_close(on_gpu.backward().cpu(), on_cpu.backward(), rtol=1e-3, atol=1e-5)
        for trainee in (on_cpu, on_gpu):
            lr = torch.full((3,), 1e-3)
            trainee.update(lr.to(trainee.parameters()[0].device))
    losses = [trainee.evaluate("val", 100)[0].cpu() for trainee in (on_gpu, on_cpu)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("number", NUMBERS)
def test_no_waiting_between_decisions(number: int) -> None:
    task = training_task(number, "general")
    task = replace(task, spec=replace(task.spec, total_steps=STEPS))
    trainee = batch(task, "cuda")
    controller = Controller(STEPS, trainee.traits, 3, device="cuda")
    lrs = []
    while not controller.done:
        torch.cuda.set_sync_debug_mode("error" if controller.step else "default")
        run_interval(trainee, controller)
        torch.cuda.set_sync_debug_mode("default")
        controller.close(trainee.evaluate("val", 100)[0])
        if controller.deciding:
            controller.act(load_policy().act(controller))
        lrs.append(controller.lr)
    assert all(lr.is_cuda for lr in lrs)
    assert len({float(lr[0]) for lr in lrs}) > 3


def test_a_scheduler_goes_on_exactly() -> None:
    task = build_task("mlp-mnist", STEPS, OptimizerSpec("adamw"))

    def go(start: int, end: int, state: dict[str, object] | None = None) -> dict[str, object]:
        trainee = build_trainee(task, "cuda")
        scheduler = LearnedLR(trainee.optimizer, STEPS)
        if state:
            trainee.load_state_dict(state["trainee"])
            scheduler.load_state_dict(state["scheduler"])
        for _ in range(start, end):
            loss = trainee.backward()
            trainee.optimizer.step()
            scheduler.step(loss)
        return {"trainee": trainee.state_dict(), "scheduler": scheduler.state_dict()}

    whole, rest = go(0, STEPS), go(31, STEPS, go(0, 31))

    assert whole["scheduler"]["decisions"] == rest["scheduler"]["decisions"]
    assert len(whole["scheduler"]["decisions"]) > 10
    torch.testing.assert_close(whole["trainee"]["model"], rest["trainee"]["model"])


@pytest.mark.parametrize("trainee", ["resnet18-mnist", "decoder-text-small", "lora-llm"])
def test_finetune_takes_the_gpu(tmp_path: Path, trainee: str) -> None:
    llm = LanguageModelSettings()
    if trainee == "lora-llm":
        llm = replace(llm, data="virtualhome", model="tiny-llama", answers=2, dropout=0.1)
    settings = FinetuneSettings(trainee, total_steps=24, output=tmp_path / "out", llm=llm)
    metrics = json.loads(finetune(settings).read_text())

    assert torch.cuda.max_memory_allocated() > 1e6
    assert all(v == v for v in metrics.values())
