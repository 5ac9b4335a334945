"""What the level of a policy's LR is off by, and if it could tell: ``benchmarks/lr_levels.py``.

Trains each task under a policy, and with all its actions from one decision on shifted by constants,
which holds its LR higher or lower for the rest of the run. A model of the losses that result,
cross-validated over tasks, then chooses a shift by what the policy has read by some decision. Where
it gains little, so would a policy that is trained further on the same signals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.table import Table
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lrenv.controller import Controller
from lrenv.policies.frozen import load_policy
from lrenv.policies.network import CausalTransformer, Head
from lrenv.trainees.families import short_tasks
from lrenv.trainees.tasks import Task
from lrenv.training.generalist import CUT
from lrenv.training.outcome_ppo import log_changes
from lrenv.training.parallel import Workers
from lrenv.training.progress import console, track
from lrenv.training.records import bootstrap_interval
from lrenv.training.rollout import NetworkChoice, drop_signals, roll_out
from lrenv.training.runfolder import write_json

FIRST_NUMBER = 10**6
"""Number of the first task of each family; no policy was trained or selected on those behind it."""

_MODELS: dict[str, Callable[[], Any]] = {
    "token": lambda: RandomForestRegressor(
        300, min_samples_leaf=8, max_features=0.3, random_state=0
    ),
    "hidden": lambda: make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11))),
    "family": RidgeCV,
}


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    policy: str = "default"
    """Policy, by the name of a shipped one or the path of its card."""
    families: tuple[str, ...] = ("balanced", "repeated", "rough", "picture", "table", "photo")
    """Families of the tasks."""
    tasks: int = 100
    """Tasks of each family."""
    longest: int = 800
    """Longest runs, in optimizer steps."""
    shifts: tuple[float, ...] = (-0.35, -0.18, 0.18, 0.35, 0.55)
    """What is added to the actions, in units of e² of the LR; a policy takes some of it back."""
    shifted_from: int = 12
    """Decision from which on they are shifted."""
    read_at: tuple[int, ...] = (12, 24, 40, 60, 80)
    """Decisions, at most the last of a run, at which the model reads what the policy does."""
    output: Path = Path("runs/lr_levels.json")
    """Where the figures go."""
    workers: int = 1
    """Tasks side by side."""


@dataclass(frozen=True)
class Shifted:
    """Runs of one task, the first of them not shifted.

    Attributes:
        tokens: What the policy reads in the run that is not shifted, ``(t, f)``.
        log_lrs: Mean log LR over the shifted decisions, less that of the first run, ``(r,)``.
        changes: Log of final losses over that of the first, cut at ±log ``CUT``, ``(r,)``.
    """

    tokens: Tensor
    log_lrs: Tensor
    changes: Tensor


def main(settings: Settings) -> None:
    """Train, print the tables, write the JSON file."""
    torch.set_num_threads(1)
    actor = load_policy(settings.policy).actor
    families, runs = [], []
    with Workers(settings.workers) as workers:
        for family in track(settings.families, "Families"):
            drawn = short_tasks(count(FIRST_NUMBER), family, settings.longest)
            jobs = [(task, number) for number, task in islice(drawn, settings.tasks)]
            runs += workers.starmap(run_shifted, jobs, actor, settings)
            families += [family] * settings.tasks
    changes = torch.stack([run.changes for run in runs])
    lrs = torch.stack([run.log_lrs for run in runs])
    named = np.array(families)
    shifts = [0.0, *settings.shifts]
    table = Table("family", "figure", *(f"{shift:+g}" for shift in shifts), "least of all")
    for family in settings.families:
        of = torch.from_numpy(named == family)
        table.add_row(family, "LR", *(f"× {x:.2f}" for x in lrs[of].mean(0).exp()), "")
        losses = [*changes[of].mean(0), changes[of].amin(1).mean()]
        table.add_row(family, "loss", *(f"{x.exp():.3f}" for x in losses))
    console.print(table)
    chosen = {
        name: _chosen(model, x, changes) for name, model, x in _inputs(runs, named, actor, settings)
    }
    table = Table("what chooses the shift reads", "losses over those without (95 %)")
    for name, logs in chosen.items():
        low, high = bootstrap_interval([[value] for value in logs.tolist()])
        table.add_row(name, f"{logs.mean().exp():.3f} ({low:.3f}-{high:.3f})")
    console.print(table)
    head = {**asdict(settings), "output": str(settings.output)}
    figures = {"changes": changes, "log_lrs": lrs, "chosen": torch.stack([*chosen.values()])}
    rounded = {name: value.round(decimals=4).tolist() for name, value in figures.items()}
    write_json(
        settings.output, {"settings": head, "families": families, "read": list(chosen), **rounded}
    )


def run_shifted(task: Task, seed: int, actor: Head, settings: Settings) -> Shifted:
    """Train a task with each shift, all runs given the same signals."""
    shifts = torch.tensor([0.0, *settings.shifts])
    choose, decided = NetworkChoice(actor), count()

    def shifted(token: Tensor, controller: Controller) -> Tensor:
        return choose(token, controller) + shifts * (next(decided) >= settings.shifted_from)

    mask = drop_signals(1, torch.Generator().manual_seed(seed)).expand(len(shifts), -1)
    rollout = roll_out(task, len(shifts), shifted, mask)
    cut = math.log(CUT)
    log_lrs = rollout.lrs[:, settings.shifted_from :].log().mean(1)
    changes = log_changes(rollout.final, rollout.final[:1]).clamp(-cut, cut)
    return Shifted(rollout.tokens[0].clone(), log_lrs - log_lrs[0], changes)


def _inputs(
    runs: list[Shifted], families: np.ndarray, actor: Head, settings: Settings
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield what a model may choose by: label, kind of model, inputs ``(tasks, features)``."""
    known = np.stack([families == family for family in settings.families], 1).astype(float)
    yield "the family alone", "family", known
    trunk = actor.trunk
    assert isinstance(trunk, CausalTransformer)
    with torch.no_grad():
        hidden = [trunk(actor.read(run.tokens[None]))[0] for run in runs]
    for decision in settings.read_at:
        for name, rows in (("token", [run.tokens for run in runs]), ("hidden", hidden)):
            x = torch.stack([row[min(decision, len(row)) - 1] for row in rows]).numpy()
            label = "the newest token" if name == "token" else "what the policy makes of all tokens"
            yield f"{label}, decision {decision}", name, x


def _chosen(model: str, x: np.ndarray, changes: Tensor) -> Tensor:
    """Log changes of loss by the shifts that a model of other tasks chooses, ``(tasks,)``."""
    folds = KFold(10, shuffle=True, random_state=0)
    found = cross_val_predict(_MODELS[model](), x, changes[:, 1:].numpy(), cv=folds)
    told = torch.cat([torch.zeros(len(changes), 1), torch.from_numpy(found).float()], 1)
    return changes.gather(1, told.argmin(1, keepdim=True))[:, 0]


if __name__ == "__main__":
    main(tyro.cli(Settings))
