"""What schedulers cost: ``python benchmarks/overhead.py``.

The same run under a constant LR, torch's cosine, ``LearnedLR`` and the adaptive methods. For time,
all train side by side, a step each in turn, and the process's own time is taken, so that it matters
little what else the machine does; loading the policy is not counted. For memory, each trains in a
process of its own, whose peak is read.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.training.methods import learned_lr
from lrenv.training.peers import get_peer, usual_peak
from lrenv.training.progress import console, track
from lrenv.training.runfolder import write_json

STEPS = {"mlp-mnist": (2_000, 20_000), "resnet18-mnist": (200,), "lora-llm": (60,)}
"""Lengths of the runs: a run has up to 80 decisions, however long it is."""

MEMORY_STEPS = 40
ADAPTIVE = ("lc", "gen", "hi-dlr", "alr")
METHODS = ("constant", "cosine", "learned", *ADAPTIVE)
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    trainees: tuple[str, ...] = tuple(STEPS)
    """Trainees, by name."""
    methods: tuple[str, ...] = METHODS
    """Methods; the constant LR is always among them."""
    memory_of: str | None = None
    """Train under that one alone and print the peak of the memory, in MiB."""
    output: Path = Path("runs/overhead.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON file."""
    torch.set_num_threads(1)
    if settings.memory_of:
        print(json.dumps(_peak_memory(settings.trainees[0], settings.memory_of)))
        return
    rows: list[dict[str, Any]] = []
    for name in settings.trainees:
        methods = tuple(dict.fromkeys(("constant", *settings.methods)))
        memories = _memories(name, methods)
        for steps in STEPS[name]:
            rows.append({"trainee": name, **_times(name, steps, methods), **memories})
            write_json(settings.output, rows)
    table = Table("trainee", "method", "× time (95 %)", "peak memory", "× memory")
    for row in rows:
        for method in row["time"]:
            low, high = row["interval"][method]
            megabytes = row["megabytes"]
            table.add_row(
                f"{row['trainee']}, {row['steps']} steps of {1000 * row['seconds']:.1f} ms",
                method,
                f"{row['time'][method]:.3f} ({low:.3f}–{high:.3f})",
                f"{megabytes[method]:.0f} MiB",
                f"{megabytes[method] / megabytes['constant']:.3f}",
            )
    console.print(table)


def _times(name: str, steps: int, methods: Sequence[str]) -> dict[str, Any]:
    runs = {method: _run(name, method, steps) for method in methods}
    spent: dict[str, list[float]] = {method: [] for method in methods}
    draw = random.Random(0)
    for _ in track(range(steps), name):
        for method in draw.sample(methods, len(methods)):
            began = time.process_time()
            runs[method]()
            spent[method].append(time.process_time() - began)
    seconds = {method: torch.tensor(times) for method, times in spent.items()}
    constant = seconds["constant"]
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(constant), (_BOOTSTRAP, len(constant)), generator=generator)
    low, high = round(0.025 * _BOOTSTRAP), round(0.975 * _BOOTSTRAP) - 1
    base = constant[index].sum(1)
    intervals = {m: (x[index].sum(1) / base).sort().values[[low, high]] for m, x in seconds.items()}
    return {
        "steps": len(constant),
        "seconds": float(constant.mean()),
        "time": {m: float(x.sum() / constant.sum()) for m, x in seconds.items()},
        "interval": {method: ends.tolist() for method, ends in intervals.items()},
    }


def _memories(name: str, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--trainees", name, "--memory-of"]
    peaks = {
        method: json.loads(
            subprocess.run(
                [*command, method], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        for method in methods
    }
    return {"megabytes": peaks}


def _peak_memory(name: str, method: str) -> float:
    step = _run(name, method, MEMORY_STEPS)
    for _ in range(MEMORY_STEPS):
        step()
    # Not getrusage, whose peak is at least that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _run(name: str, method: str, steps: int) -> Callable[[], None]:
    """A function that takes one optimizer step of a run of that many."""
    task = build_task(name, steps, OptimizerSpec("adamw"))
    trainee = build_trainee(task)
    if method in ADAPTIVE:
        peer = get_peer(method).start(trainee, usual_peak(task.spec.optimizer), 1.0)
        return lambda: _step(trainee, peer.after_step)
    if method == "learned":
        learned = learned_lr(trainee)
        return lambda: _step(trainee, learned.step)
    if method == "cosine":
        cosine = CosineAnnealingLR(trainee.optimizer, steps)
        return lambda: _step(trainee, lambda _: cosine.step())
    return lambda: _step(trainee, None)


def _step(trainee: SingleTrainee, after_step: Callable[[Tensor], None] | None) -> None:
    loss = trainee.backward()
    trainee.optimizer.step()
    if after_step:
        after_step(loss)


if __name__ == "__main__":
    main(tyro.cli(Settings))
