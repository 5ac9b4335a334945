"""Layer Dance: ALR and pairwise layers on a decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from sources_claims import Check, SourceTable, judge
from sources_runs import Method, Row, Runs, expert, follow, kept, learned, peer

from lrenv.adaptive import PairwiseLayers
from lrenv.policies.lrbench import LRPolicy
from lrenv.trainees.decoder import DecoderSpec
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.training.peers import PeerRun
from lrenv.training.progress import track
from lrenv.training.records import MATCHED

COLUMNS = {
    "train_loss": "final train loss",
    "val_loss": "val. loss",
    "mean_lr": "mean LR",
    "cpu_seconds": "CPU seconds",
}
REPORTED = (
    "final train losses of 6.44 and 6.09 (5k and 10k pairs) under Step-LR, 5.86 and 5.78 "
    "under ALR, 5.90 and 5.76 under ALR-Pairwise"
)


@dataclass(frozen=True)
class DanceSetup:
    """The experiment in small.

    Attributes:
        width: Width of the decoder.
        layers: Its layers.
        heads: Its attention heads.
        context: Tokens of a sequence.
        batch_size: Sequences of a batch.
        total_steps: Length of a run.
        peaks: LRs among which every method is tuned.
        parts: Steps of Step-LR: a tenth of the LR behind each of so many parts of the run.
        rounds: Steps that are timed with each set of trained layers.
    """

    width: int = 128
    layers: int = 6
    heads: int = 4
    context: int = 64
    batch_size: int = 8
    total_steps: int = 300
    peaks: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    parts: tuple[int, ...] = (2, 3)
    rounds: int = 25

    @property
    def differs(self) -> str:
        """What differs from the source."""
        return (
            f"width {self.width} for 768, characters of Python's reference for DailyDialog, "
            f"{self.total_steps} steps of {self.batch_size} x {self.context}; peaks, and the "
            "steps of Step-LR, tuned on the first seed; final train loss is the mean over the "
            "last 5 % of steps"
        )

    @property
    def task(self) -> Task:
        """The task."""
        spec = DecoderSpec(
            self.width,
            self.layers,
            self.heads,
            optimizer=OptimizerSpec("adamw"),
            batch_size=self.batch_size,
            total_steps=self.total_steps,
        )
        return Task(DataSpec("python-docs", context=self.context), spec, seed=0)


def step_lr(peak: float, parts: int) -> Method:
    """Step-LR: a tenth of the LR behind each of so many equal parts of the run."""

    def start(trainee: SingleTrainee) -> PeerRun:
        total = trainee.total_steps
        policy = LRPolicy("STEP", {"k0": peak, "gamma": 0.1, "l": -(-total // parts)})
        return follow(trainee, [policy(step) for step in range(total)])

    return Method("Step-LR", ("step", peak, parts), start, peak)


def costs(task: Task, rounds: int) -> Row:
    """MiB of gradients and median CPU milliseconds of a step, by the layers that are trained."""
    trainee = build_trainee(replace(task, spec=replace(task.spec, total_steps=4 * rounds)))
    pairs = PairwiseLayers(trainee.model.layers)
    top = len(trainee.model.layers) - 2
    places = {"all layers": None, "lowest pair": 0, "middle pair": top // 2, "highest pair": top}
    times: dict[str, list[float]] = {name: [] for name in places}
    sizes: dict[str, int] = {}
    for _ in track(range(rounds), "Time and memory of pairs"):
        for name, place in places.items():
            if place is None:
                pairs.release()
            else:
                pairs.load_state_dict({"current": place})
            began = time.process_time()
            trainee.backward()
            trainee.optimizer.step()
            times[name].append(time.process_time() - began)
            grads = [p.grad for p in trainee.model.parameters() if p.grad is not None]
            sizes[name] = sum(grad.numel() * grad.element_size() for grad in grads)
    return {
        name: {"gradient_mib": sizes[name] / 2**20, "step_ms": 1e3 * median(times[name])}
        for name in places
    }


def dance_table(folder: Path, setup: DanceSetup, seeds: int) -> SourceTable:
    """Run the methods and make the table."""
    runs, task = Runs(folder / "layer-dance"), setup.task
    grids = {
        "Step-LR": [step_lr(peak, parts) for peak in setup.peaks for parts in setup.parts],
        "ALR": [peer("alr", lr) for lr in setup.peaks],
        "ALR-Pairwise": [peer("alr-pairwise", lr) for lr in setup.peaks],
    }
    tuned = {name: runs.tuned(task, grid, seeds) for name, grid in grids.items()}
    rate = sum(row["mean_lr"] for row in tuned["ALR"]) / len(tuned["ALR"])
    matched = expert(MATCHED, "constant", float(f"{rate:.6g}"))
    rows = [row for own in tuned.values() for row in own]
    rows += runs.seeds(task, matched, seeds) + runs.seeds(task, learned(), seeds)
    step, alr, pair = (f"{name}, tuned" for name in grids)
    claim = [Check(name, step, "train_loss") for name in (alr, pair)]
    control = [
        Check(alr, step),
        Check(pair, step),
        Check(alr, MATCHED, "train_loss"),
        Check(pair, alr, "train_loss"),
        Check(alr, "learned", "train_loss"),
    ]
    key = ["costs", task.to_json(), setup.rounds]
    cost = kept(runs.folder, key, lambda: costs(task, setup.rounds))
    return SourceTable(
        title=f"Layer Dance: a decoder of {setup.layers} layers, width {setup.width}",
        reported=REPORTED,
        differs=setup.differs,
        columns=COLUMNS,
        rows=rows,
        claim=judge("ALR and ALR-Pairwise end below Step-LR", claim, rows),
        control=judge("In validation loss, and against each other", control, rows),
        further={f"Training {name}": value for name, value in cost.items()},
    )
