"""Hi-DLR's influences choose what to fine-tune: auto-PEFT against LoRA of the same size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sources_claims import Check, SourceTable, judge
from sources_runs import Method, Row, Runs, follow

from lrenv.adaptive import HiDLR
from lrenv.adaptive.groups import freeze_to_budget, group_parameters
from lrenv.policies.experts import schedule
from lrenv.trainees.adapted import AdaptedDecoderSpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.stacked import trained
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.training.peers import PeerRun

COLUMNS = {
    "parameters": "trained",
    "share": "share, %",
    "val_loss": "val. loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "cpu_seconds": "CPU seconds",
}
REPORTED = "fine-tuning by less than 0.5 % of the parameters, chosen by influence"
FULL = "all parameters, tuned"
_PROBED, _PROBE_LR = 32, 1e-3


@dataclass(frozen=True)
class PEFTSetup:
    """The experiment in small.

    Attributes:
        width: Width of the decoder.
        layers: Its layers.
        context: Tokens of a sequence.
        total_steps: Length of a run.
        n_train: Training sequences.
        ranks: Ranks of LoRA, whose sizes are the budgets.
        peaks: Peaks of the cosine among which each method is tuned.
    """

    width: int = 64
    layers: int = 2
    context: int = 24
    total_steps: int = 300
    n_train: int = 1000
    ranks: tuple[int, ...] = (1, 4)
    peaks: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

    def task(self, rank: int) -> Task:
        """Fine-tuning of a decoder to a text in which a fifth of the characters change places."""
        spec = AdaptedDecoderSpec(
            self.width,
            self.layers,
            4,
            rank=rank,
            alpha=2.0 * max(1, rank),
            optimizer=OptimizerSpec("adamw"),
            batch_size=8,
            total_steps=self.total_steps,
        )
        data = DataSpec("python-docs", context=self.context, cipher=0.2, n_train=self.n_train)
        return Task(data, spec, seed=0)


def chosen(label: str, peak: float, budget: int | None, by_influence: bool = True) -> Method:
    """A cosine on some of the parameters.

    Args:
        label: How it is called.
        peak: Peak LR.
        budget: Parameters that are trained at most, tensor by tensor; all if None.
        by_influence: The most influential ones, rather than random ones.
    """

    def start(trainee: SingleTrainee) -> PeerRun:
        if budget is not None:
            freeze(trainee, budget, by_influence)
        return follow(trainee, schedule("cosine", trainee.total_steps, peak))

    key = ("chosen", peak, budget, by_influence, _PROBED, _PROBE_LR)
    return Method(label, key, start, peak)


def freeze(trainee: SingleTrainee, budget: int, by_influence: bool) -> None:
    """Freeze what does not fit the budget, after steps that measure influences and are undone."""
    begun, build = trainee.state_dict()["step"], trainee.spec.optimizer.build
    weights = {name: p.clone() for name, p in trainee.model.state_dict().items()}
    tensors = group_parameters(trainee.model, by=lambda name, _: name).values()
    trainee.optimizer = build([{"params": params} for params in tensors], _PROBE_LR)
    scheduler = HiDLR(trainee.optimizer, trainee.model, trainee.batch_loss, axis=True)
    if by_influence:
        for _ in range(min(_PROBED, trainee.total_steps)):
            trainee.backward()
            trainee.optimizer.step()
            scheduler.step()
    else:
        scheduler.influence = torch.rand(len(tensors)).tolist()
    freeze_to_budget(scheduler, budget)
    trainee.optimizer = build(trained(trainee.model))
    state = {"model": weights, "optimizer": trainee.optimizer.state_dict(), "step": begun}
    trainee.load_state_dict(state)


def figures(trainee: SingleTrainee) -> dict[str, float]:
    """Test loss and accuracy, and how many parameters were trained."""
    loss, accuracy = trainee.evaluate("test")
    size = sum(p.numel() for p in trained(trainee.model))
    return {"test_loss": float(loss), "test_accuracy": float(accuracy), "parameters": size}


def peft_table(folder: Path, setup: PEFTSetup, seeds: int) -> SourceTable:
    """Run the methods and make the table."""
    runs = Runs(folder / "auto-peft", figures, "test, parameters")

    def tuned(label: str, rank: int, budget: int | None, by_influence: bool = True) -> list[Row]:
        grid = [chosen(label, peak, budget, by_influence) for peak in setup.peaks]
        return runs.tuned(setup.task(rank), grid, seeds)

    rows, claim, control = tuned("all parameters", 0, None), [], []
    whole = rows[0]["parameters"]
    for rank in setup.ranks:
        adapter = tuned(f"LoRA, rank {rank}", rank, None)
        budget = adapter[0]["parameters"]
        names = [f"Hi-DLR's choice of {budget}", f"random choice of {budget}"]
        rows += adapter
        for name, by_influence in zip(names, (True, False), strict=True):
            rows += tuned(name, 0, budget, by_influence)
        auto, random = (f"{name}, tuned" for name in names)
        claim.append(Check(auto, f"LoRA, rank {rank}, tuned", "test_loss"))
        control += [Check(auto, random, "test_loss"), Check(auto, FULL, "test_loss")]
    rows = [{**row, "share": 100 * row["parameters"] / whole} for row in rows]
    return SourceTable(
        title="Auto-PEFT by Hi-DLR's influences: a pretrained decoder on a changed text",
        reported=REPORTED,
        differs=(
            f"a decoder of {whole} parameters on characters for language models of 100 million "
            "and more, so that the smallest budget is a larger share; tensors are chosen whole; "
            "each method's peak tuned on the first seed"
        ),
        columns=COLUMNS,
        rows=rows,
        claim=judge("Hi-DLR's choice beats LoRA of the same size", claim, rows),
        control=judge("Against a random choice and against all parameters", control, rows),
    )
