"""GeN and Hi-DLR: LRs from the curvature, on images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sources_claims import Check, SourceTable, judge
from sources_runs import Method, Runs, expert, learned, peer

from lrenv.adaptive import HiDLR
from lrenv.adaptive.groups import group_parameters
from lrenv.trainees.convnet import ConvNetSpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.training.peers import PeerRun, usual_peak
from lrenv.training.records import MATCHED

COLUMNS = {
    "val_loss": "val. loss",
    "val_accuracy": "val. accuracy",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "mean_lr": "mean LR",
    "cpu_seconds": "CPU seconds",
}
REPORTED = (
    "96.76 % of CIFAR-10 right after ResNet-50 under GeN, 95.91 % under the best other schedule"
)
_SGD = OptimizerSpec("sgd", momentum=0.9)


@dataclass(frozen=True)
class DLRSetup:
    """The experiment in small.

    Attributes:
        name: What is trained.
        task: The task; GeN and Hi-DLR start from the usual LR of its optimizer.
        peaks: Peaks among which constant and cosine are tuned.
    """

    name: str
    task: Task
    peaks: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)


CONVNET = DLRSetup(
    "convnet 16-32 with batch norm on Fashion-MNIST",
    Task(
        DataSpec("fashion-mnist"),
        ConvNetSpec((16, 32), batch_norm=True, optimizer=_SGD, batch_size=64, total_steps=400),
        seed=0,
    ),
)


def hi_dlr(lr: float, n_groups: int) -> Method:
    """Hi-DLR on two groups, vectors and matrices, or on three, the head being one of its own."""

    def start(trainee: SingleTrainee) -> PeerRun:
        kinds = group_parameters(trainee.model)
        vectors = kinds.get("norm", []) + kinds.get("bias", [])
        head, rest = kinds.get("head", []), kinds.get("rest", [])
        parts = [vectors, head + rest] if n_groups == 2 else [vectors, head, rest]
        groups = [{"params": part} for part in parts]
        trainee.optimizer = trainee.spec.optimizer.build(groups, lr)
        scheduler = HiDLR(trainee.optimizer, trainee.model, trainee.batch_loss)
        return PeerRun(lambda _: scheduler.step())

    return Method(f"Hi-DLR, {n_groups} groups", ("hi-dlr", lr, n_groups), start, lr)


def test_figures(trainee: SingleTrainee) -> dict[str, float]:
    """Test loss and accuracy."""
    loss, accuracy = trainee.evaluate("test")
    return {"test_loss": float(loss), "test_accuracy": float(accuracy)}


def dlr_table(folder: Path, setup: DLRSetup, seeds: int) -> SourceTable:
    """Run the methods and make the table."""
    runs = Runs(folder / "hi-dlr", test_figures, "test")
    task = setup.task
    start = usual_peak(task.spec.optimizer)
    gen = runs.seeds(task, peer("gen", start), seeds)
    mean_lr = sum(row["mean_lr"] for row in gen) / len(gen)
    methods = [
        hi_dlr(start, 2),
        hi_dlr(start, 3),
        expert(MATCHED, "constant", float(f"{mean_lr:.6g}")),
        learned(),
    ]
    rows = [*gen, *(row for method in methods for row in runs.seeds(task, method, seeds))]
    for kind in ("constant", "cosine"):
        grid = [expert(kind, kind, peak) for peak in setup.peaks]
        rows += runs.tuned(task, grid, seeds, figure="val_accuracy")
    figure = "test_accuracy"
    claim = [Check("GeN", f"{kind}, tuned", figure) for kind in ("constant", "cosine")]
    for n in (2, 3):
        claim += [Check(f"Hi-DLR, {n} groups", b, figure) for b in ("constant, tuned", "GeN")]
    control = [Check("GeN", MATCHED, figure), Check("GeN", "learned", figure)]
    return SourceTable(
        title=f"GeN and Hi-DLR: {setup.name}",
        reported=REPORTED,
        differs=(
            f"{setup.name} for ResNet-50 on CIFAR-10; {task.spec.total_steps} steps of "
            f"{task.spec.batch_size} for many epochs; constant and cosine tuned on the first seed"
        ),
        columns=COLUMNS,
        rows=rows,
        claim=judge("GeN beats tuned schedules, Hi-DLR one LR for all", claim, rows),
        control=judge("Against what needs no tuning", control, rows),
    )
