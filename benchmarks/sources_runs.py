"""What the tables of the sources share: methods, and runs that are kept."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrenv
from lrenv.hooks import set_lr
from lrenv.policies.experts import schedule
from lrenv.policies.frozen import load_policy
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import Task, load_data
from lrenv.training.methods import learned_lr
from lrenv.training.peers import PeerRun, get_peer
from lrenv.training.progress import progress_bar
from lrenv.training.runfolder import read_json, write_json

LAST = 0.05
"""Share of a run over whose steps the final training loss is averaged."""

_FORMAT = 1  # of the records; raised where a figure comes to mean something else

Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to set the LR of a run.

    Attributes:
        label: How it is called in a table.
        key: JSON values that tell its runs from others'.
        start: Sets up a run, after which the trainee's optimizer is the one that is used.
        lr: LR or peak that it was given, None for none.
    """

    label: str
    key: tuple[Any, ...]
    start: Callable[[SingleTrainee], PeerRun]
    lr: float | None = None


def expert(label: str, kind: str, peak: float) -> Method:
    """An expert at a peak LR."""

    def start(trainee: SingleTrainee) -> PeerRun:
        return follow(trainee, schedule(kind, trainee.total_steps, peak))

    return Method(label, ("expert", kind, peak), start, peak)


def peer(name: str, lr: float, label: str | None = None) -> Method:
    """A peer of ``PEERS``, which starts from an LR."""

    def start(trainee: SingleTrainee) -> PeerRun:
        return get_peer(name).start(trainee, lr, 1.0)

    return Method(label or get_peer(name).label, ("peer", name, lr), start, lr)


def learned(layerwise: bool = False) -> Method:
    """The default policy, with LC's multipliers where asked."""
    policy = load_policy("default")

    def start(trainee: SingleTrainee) -> PeerRun:
        scheduler = learned_lr(trainee, policy, layerwise="lc" if layerwise else None)
        return PeerRun(scheduler.step)

    label = "learned, with LC" if layerwise else "learned"
    return Method(label, ("learned", policy.card["sha256"], layerwise), start)


def follow(trainee: SingleTrainee, rates: Sequence[float]) -> PeerRun:
    """Set the LR of every step of a run to the given one."""
    left = iter(rates)

    def advance(_: Tensor | None = None) -> None:
        if (lr := next(left, None)) is not None:
            for group in trainee.optimizer.param_groups:
                set_lr(group, lr)

    advance()
    return PeerRun(advance)


@dataclass(frozen=True)
class Runs:
    """Runs of one table, each of them a file, so that a stopped benchmark goes on.

    Attributes:
        folder: Where the files go.
        measure: What else is measured of a trained model.
        measured: Says in the files' keys what that is.
        val_examples: Examples of the validation losses; all if None.
    """

    folder: Path
    measure: Callable[[SingleTrainee], dict[str, float]] = field(default=lambda trainee: {})
    measured: str = ""
    val_examples: int | None = None

    def get(self, task: Task, method: Method) -> Row:
        """Train one run, or read its record."""
        key = [task.to_json(), load_data(task.data).name, method.key]
        return kept(
            self.folder,
            [*key, self.measured, self.val_examples],
            lambda: self._train(task, method),
        ) | {"method": method.label}

    def seeds(self, task: Task, method: Method, seeds: int) -> list[Row]:
        """One run on each of so many seeds."""
        return [self.get(replace(task, seed=seed), method) for seed in range(seeds)]

    def tuned(
        self, task: Task, methods: Sequence[Method], seeds: int, figure: str = "val_loss"
    ) -> list[Row]:
        """Choose among methods on the first seed, and run the best one on the others too.

        Args:
            task: The task; its seed is replaced.
            methods: The methods.
            seeds: Number of seeds.
            figure: The validation figure that chooses: the least loss or the highest accuracy.
        """
        sign = -1.0 if "accuracy" in figure else 1.0

        def cost(method: Method) -> float:
            value = self.get(replace(task, seed=0), method)[figure]
            return math.inf if value is None else sign * value

        best = min(methods, key=cost)
        return self.seeds(task, replace(best, label=f"{best.label}, tuned"), seeds)

    def _train(self, task: Task, method: Method) -> Row:
        torch.manual_seed(task.seed)  # for methods that draw
        trainee = build_trainee(task)
        began = time.process_time()
        run = method.start(trainee)
        spent, rates = time.process_time() - began, []
        # The last of the hooks, behind those that change the LR for the time of a step.
        trainee.optimizer.register_step_pre_hook(lambda o, *_: rates.append(mean_lr(o)))
        losses, halfway = [], math.nan
        with progress_bar() as bar:
            title = f"{method.label}, seed {task.seed}"
            line = bar.add_task(title, total=trainee.total_steps, status="")
            for step in range(1, trainee.total_steps + 1):
                began = time.process_time()
                loss = trainee.backward()
                trainee.optimizer.step()
                run.after_step(loss)
                losses.append(float(loss))
                spent += time.process_time() - began
                bar.update(line, completed=step, status=f"loss {losses[-1]:.4f}")
                if step == trainee.total_steps // 2:
                    halfway = float(trainee.evaluate("val", self.val_examples)[0])
        last = losses[-max(1, round(LAST * len(losses))) :]
        val, accuracy = trainee.evaluate("val", self.val_examples)
        figures = {
            "val_loss_half": halfway,
            "val_loss": float(val),
            "val_accuracy": float(accuracy),
            "train_loss": sum(last) / len(last),
            "mean_lr": sum(rates) / len(rates),
            "cpu_seconds": spent,
            **self.measure(trainee),
        }
        finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        return {"seed": task.seed, "lr": method.lr, **finite}


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """The LR of an optimizer, averaged over its tensors."""
    rates = [(float(g["lr"]), len(g["params"])) for g in optimizer.param_groups]
    return sum(lr * n for lr, n in rates) / sum(n for _, n in rates)


def kept(folder: Path, key: Sequence[Any], make: Callable[[], Row]) -> Row:
    """Make a record, or read the one that was made under that key."""
    whole = json.dumps([_FORMAT, lrenv.__version__, torch.__version__, *key])
    path = folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        write_json(path, {"key": json.loads(whole), **make()})
    return {k: v for k, v in read_json(path).items() if k != "key"}
