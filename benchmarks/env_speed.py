"""Optimizer steps a second of the vectorised runs: ``python benchmarks/env_speed.py``.

Every figure is a ratio within one run of this script, one thread each side: runs in lockstep with
all statistics on against (a) the same trainee in a plain torch loop without any environment, (b)
stable-baselines3's SubprocVecEnv over single environments on two cores, (c) where its Python is
given, DACBench's SGD environment on an MLP and batch of the same size, and (d) the machine's own
matrix-multiplication peak, counted in the forward and backward arithmetic of an MLP. Runs in
lockstep validate at every decision, as the environments they are compared with do; the plain loop
does not, so beside it the time of validation is left out. The policy's share is that of an
untrained actor in a rollout. On a GPU, runs in lockstep, the plain loop and the peak are the GPU's,
and (b) and (c) stay where they run, on the CPU. Writes one table and one JSON file.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.table import Table
from stable_baselines3.common.vec_env import SubprocVecEnv

from lrenv.controller import Controller, run_interval
from lrenv.env import LRScheduleEnv
from lrenv.observation import FEATURES, ScaleFreeObserver
from lrenv.policies.network import Head
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.registry import build_task, build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.stacked import StackedModel
from lrenv.trainees.stacked_optimizer import StackedOptimizer
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.progress import console, track
from lrenv.training.rollout import NetworkChoice
from lrenv.training.runfolder import write_json

# what the time in lockstep is spent on, and the methods that spend it
_PARTS = ("compute", "update", "statistics", "validation", "policy")
_BASELINES = (
    "plain",
    "subproc",
    *(f"DACBench{of}, LR per {unit}" for of in ("", " of images") for unit in ("epoch", "step")),
)
_TIMED = (
    ("trainee", "backward", "compute"),
    ("trainee", "update", "update"),
    ("trainee", "evaluate", "validation"),
    ("controller", "before_update", "statistics"),
    ("controller", "after_update", "statistics"),
    ("controller", "close", "statistics"),
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    trainees: tuple[str, ...] = (
        "mlp-mnist",
        "mlp-mnist-classic",
        "convnet-mnist",
        "decoder-text-small",
    )
    """Trainees, by name."""
    optimizers: tuple[str, ...] = ("sgd", "adam")
    """Optimizers."""
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of runs in lockstep."""
    total_steps: int = 1000
    """Length of a run, which sets how many of its steps are measured."""
    seconds: float = 2.0
    """Time for each figure, at least."""
    device: str = "cpu"
    """Where the runs live, such as cpu or cuda."""
    dacbench_python: Path | None = None
    """Python of an environment with DACBench, see dacbench_speed.py; leaves that column out if
    None."""
    output: Path = Path("runs/env_speed.json")
    """Where the figures go."""


def main(settings: Settings) -> None:
    """Measure, print the table, write the JSON file."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rates = dacbench(settings.dacbench_python, settings.seconds)
    rows = []
    for name in settings.trainees:
        for optimizer in settings.optimizers:
            task = build_task(name, settings.total_steps, OptimizerSpec.usual(optimizer))
            base = {"trainee": name, "optimizer": optimizer, "device": settings.device}
            base["plain"] = plain_loop(task, settings)
            base["subproc"] = subproc(name, optimizer, settings)
            if optimizer == "sgd":
                base |= rates.get(name, {})
            for n_runs in track(settings.batches, f"{name}, {optimizer}"):
                rows.append({**base, "runs": n_runs, **lockstep(task, n_runs, settings)})
            write_json(settings.output, rows)
    console.print(_table(rows))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Steps a second of ``work``, which returns how many steps it took, after one warm-up."""
    work()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def plain_loop(task: Task, settings: Settings) -> float:
    """Optimizer steps a second of a plain torch loop."""
    trainee = build_trainee(task, settings.device)

    def work() -> int:
        trainee._step = 0
        n_steps = min(200, trainee.total_steps)
        for _ in range(n_steps):
            trainee.backward()
            trainee.optimizer.step()
        synchronize(settings.device)
        return n_steps

    return rate(work, settings.seconds)


def subproc(trainee: str, optimizer: str, settings: Settings) -> float:
    """Optimizer steps a second of two single environments in two processes."""
    kwargs: dict[str, Any] = {"total_steps": settings.total_steps, "optimizer": optimizer}
    env = SubprocVecEnv([lambda: LRScheduleEnv(trainee, **kwargs)] * 2)
    env.reset()
    actions = np.zeros((2, 1), np.float32)
    last = [0, 0]

    def work() -> int:
        _, _, over, infos = env.step(actions)
        steps = sum(info["step"] - before for info, before in zip(infos, last, strict=True))
        last[:] = [0 if o else info["step"] for o, info in zip(over, infos, strict=True)]
        return int(steps)

    speed = rate(work, 2 * settings.seconds)
    env.close()
    return speed


def dacbench(python: Path | None, seconds: float) -> dict[str, dict[str, float]]:
    """Optimizer steps a second of DACBench's SGD environment, by trainee and mode."""
    if python is None:
        return {}
    script = str(Path(__file__).with_name("dacbench_speed.py"))
    command = [str(python), "-W", "ignore", script, "--seconds", str(2 * seconds)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for row in map(json.loads, lines.splitlines()):
        loading = " of images" if row["images"] else ""
        rates[row["trainee"]][f"DACBench{loading}, LR per {row['mode']}"] = row["steps_per_s"]
    return rates


def lockstep(task: Task, n_runs: int, settings: Settings) -> dict[str, float]:
    """Figures of ``n_runs`` runs in lockstep, whose time is split as they train."""
    device = torch.device(settings.device)
    spent: dict[str, float] = dict.fromkeys(_PARTS, 0.0)
    steps = whole = 0.0
    while whole < settings.seconds:
        trainee = _batch(task, n_runs, device)
        controller = Controller(task.spec.total_steps, trainee.traits, n_runs, device=device)
        choose = NetworkChoice(Head("scale-free", len(FEATURES)).to(device))
        observer = controller.observer
        assert isinstance(observer, ScaleFreeObserver)
        for owner, method, part in _TIMED:
            _time(trainee if owner == "trainee" else controller, method, spent, part, device)
        synchronize(device)
        began = time.perf_counter()
        while not controller.done:  # to the end: decisions are close together at the start
            run_interval(trainee, controller)
            controller.close(trainee.evaluate("val")[0])
            if controller.deciding:
                asked = time.perf_counter()
                choose(observer.tokens[-1], controller)
                synchronize(device)
                spent["policy"] += time.perf_counter() - asked
                controller.act(torch.zeros(n_runs))
        whole += time.perf_counter() - began
        steps += controller.step * n_runs
    in_env = whole - spent["policy"]
    training = in_env - spent["validation"]
    speed = steps / training
    shares = {part: seconds / training for part, seconds in spent.items()}
    shares["policy"] = spent["policy"] / whole
    if isinstance(task.spec, MLPSpec):
        peak = matmul_peak(settings.seconds / 4, device)
        shares["of peak"] = speed * _arithmetic(task.spec, task) / peak
    return shares | {
        "steps_per_s": speed,
        "env_steps_per_s": steps / in_env,
        "megabytes": _bytes(trainee) / n_runs / 2**20,
    }


def synchronize(device: torch.device | str) -> None:
    """Wait for a GPU, so that a clock read next tells of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _time(
    owner: object, method: str, spent: dict[str, float], part: str, device: torch.device
) -> None:
    """Make a method of one object add its time to a part."""
    function = getattr(owner, method)

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        result = function(*args)
        synchronize(device)
        spent[part] += time.perf_counter() - began
        return result

    setattr(owner, method, timed)


def matmul_peak(seconds: float, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device)

    def work() -> int:
        torch.mm(a, a)
        synchronize(device)
        return 1

    return rate(work, seconds) * 2 * size**3


def _arithmetic(spec: MLPSpec, task: Task) -> float:
    """Operations in the products of a step: forward, and both gradients but the inputs' own."""
    data = load_data(task.data)
    sizes = [a * b for a, b in pairwise((data.n_features, *spec.hidden, data.n_classes))]
    return 2.0 * spec.batch_size * (3 * sum(sizes) - sizes[0])


def _batch(task: Task, n_runs: int, device: torch.device) -> BatchedTrainee:
    data = load_data(task.data)
    return BatchedTrainee([task.spec] * n_runs, data, list(range(n_runs)), device=device)


def _bytes(owner: object) -> int:
    """Memory of all tensors that a batch of runs holds, but for the data set it shares."""
    if isinstance(owner, torch.Tensor):
        return owner.nbytes
    if isinstance(owner, (list, dict)):
        return sum(map(_bytes, owner.values() if isinstance(owner, dict) else owner))
    if isinstance(owner, (BatchedTrainee, StackedModel, StackedOptimizer)):
        own = {k: v for k, v in vars(owner).items() if k not in ("_x", "_splits", "_params")}
        return _bytes(own)
    return 0


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("trainee", "runs", "steps/s", *("× " + name for name in _BASELINES))
    shares = ("of peak", *_PARTS)
    for column in (*shares, "MB/run"):
        table.add_column(column)
    for row in rows:
        speed, in_env = row["steps_per_s"], row["env_steps_per_s"]
        table.add_row(
            f"{row['trainee']}, {row['optimizer']}",
            str(row["runs"]),
            f"{speed:.0f}",
            f"{speed / row['plain']:.1f}",
            *(f"{in_env / row[k]:.1f}" if k in row else "–" for k in _BASELINES[1:]),
            *(f"{row[name]:.0%}" if name in row else "–" for name in shares),
            f"{row['megabytes']:.2f}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(Settings))
