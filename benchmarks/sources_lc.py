"""LC sensitivity: LoRA on a language model, as in the source's table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sources_claims import Check, SourceTable, judge
from sources_runs import Method, Runs, expert, learned

from lrenv.adaptive import LCSensitivityLR
from lrenv.trainees.generation import generate, rouge
from lrenv.trainees.instructions import load_instructions
from lrenv.trainees.language_model import SMOLLM2, load_tokenizer
from lrenv.trainees.lora import LoRASpec
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.tasks import DataSpec, Task
from lrenv.training.peers import PeerRun
from lrenv.training.records import MATCHED

COLUMNS = {
    "val_loss_half": "val. loss at half",
    "val_loss": "at the end",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "mean_lr": "mean LR",
}
REPORTED = (
    "validation losses at half and at the end of 1.3825 and 0.2772 under LC, 1.8999 and "
    "0.3204 under the constant, 2.0984 and 1.9139 under cosine, and a ROUGE-L of .6593, "
    ".6092 and .1885"
)


@dataclass(frozen=True)
class LCSetup:
    """The experiment in small.

    Attributes:
        model: The language model.
        data: Its instructions.
        context: Tokens of a sequence at most.
        batch_size: Sequences of a batch.
        total_steps: Length of a run.
        base: LR of LC, constant and cosine.
        peaks: LRs among which a constant is tuned.
        val_examples: Examples of the validation losses.
        answers: Test prompts that are answered.
    """

    model: str = SMOLLM2
    data: str = "virtualhome"
    context: int = 96
    batch_size: int = 2
    total_steps: int = 100
    base: float = 1e-5
    peaks: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    val_examples: int = 32
    answers: int = 12

    @property
    def task(self) -> Task:
        """The task; LoRA as in the source, of rank 8 on the projections to q, k and v."""
        data = DataSpec(self.data, context=self.context, tokenizer=self.model)
        spec = LoRASpec(model=self.model, batch_size=self.batch_size, total_steps=self.total_steps)
        return Task(data, spec, seed=0)

    @property
    def differs(self) -> str:
        """What differs from the source."""
        return (
            f"{self.model} for Qwen2.5-Coder-1.5B, {self.data} for robot-task-planning, "
            f"{self.total_steps} steps of {self.batch_size} sequences of {self.context} tokens "
            f"for 500 of 4 of 512, {self.val_examples} validation examples and {self.answers} "
            "answers, one seed"
        )

    def measure(self, trainee: SingleTrainee) -> dict[str, float]:
        """ROUGE of answers to test prompts."""
        pairs = load_instructions(self.data).test[: self.answers]
        tokenizer = load_tokenizer(self.model)
        found = generate(trainee.model, tokenizer, [pair.prompt for pair in pairs])
        return rouge(found, [pair.response for pair in pairs])


def lc(base: float, normalize: bool) -> Method:
    """LC in its original form, on a constant LR."""

    def start(trainee: SingleTrainee) -> PeerRun:
        for group in trainee.optimizer.param_groups:
            group["lr"] = base
        scheduler = LCSensitivityLR(trainee.optimizer, normalize, form="nuclear")
        return PeerRun(lambda _: scheduler.step())

    label = "LC, mean multiplier 1" if normalize else "LC"
    return Method(label, ("lc", base, normalize), start, base)


def lc_table(folder: Path, setup: LCSetup) -> SourceTable:
    """Run the methods and make the table."""
    runs = Runs(folder / "lc", setup.measure, f"rouge {setup.answers}", setup.val_examples)
    task, base = setup.task, setup.base
    original = runs.get(task, lc(base, normalize=False))
    rows = [
        original,
        runs.get(task, lc(base, normalize=True)),
        runs.get(task, expert("constant", "constant", base)),
        runs.get(task, expert("cosine", "cosine", base)),
        runs.get(task, expert(MATCHED, "constant", original["mean_lr"])),
        *runs.tuned(task, [expert("constant", "constant", lr) for lr in setup.peaks], 1),
        runs.get(task, learned()),
        runs.get(task, learned(layerwise=True)),
    ]
    figures = ("val_loss_half", "val_loss", "rougeL")
    claim = [Check("LC", other, name) for other in ("constant", "cosine") for name in figures]
    control = [
        Check("LC", MATCHED),
        Check("LC, mean multiplier 1", "constant"),
        Check("LC", "constant, tuned"),
        Check("learned, with LC", "learned"),
    ]
    return SourceTable(
        title=f"LC: LoRA on {setup.model}, {setup.data}",
        reported=REPORTED,
        differs=setup.differs,
        columns=COLUMNS,
        rows=rows,
        claim=judge("LC beats constant and cosine at its base LR", claim, rows),
        control=judge("Against fair baselines", control, rows),
    )
