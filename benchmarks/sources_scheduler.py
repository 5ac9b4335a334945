"""The learned scheduler: experts, policies cloned from them, and these after PPO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from classic_policies import EXPERTS, SETTINGS
from sources_claims import Check, SourceTable, judge
from sources_runs import Row

from lrenv.training.evaluate import compare_all, compared_parts, evaluated_tasks
from lrenv.training.records import MATCHED, TUNED, RunRecord
from lrenv.training.settings import EvaluateSettings

COLUMNS = {
    "mean_train_loss": "mean train loss",
    "val_loss": "final val. loss",
    "test_accuracy": "test accuracy",
}
REPORTED = (
    "mean train losses, baseline → BC → BC + PPO, of .728 → .586 → .536 (linear), .752 → "
    ".473 → .385 (cosine) and .739 → .506 → .447 (polynomial)"
)
STAGES = {"bc": "BC", "ppo": "BC + PPO"}


def scheduler_table(folder: Path, seeds: int, setup: EvaluateSettings = SETTINGS) -> SourceTable:
    """Run what ``classic_policies.py`` runs, or read its records, and make the table."""
    settings = replace(setup, seeds=seeds)
    jobs = [
        (name, replace(task, seed=seed))
        for name, task in evaluated_tasks(settings).items()
        for seed in range(seeds)
    ]
    records = compare_all(jobs, compared_parts(settings), folder / "scheduler")
    labels = method_labels(settings)
    rows = [
        _row(record, label)
        for method, label in labels.items()
        for record in records
        if record.method == method
    ]
    claim, names = [], []
    for kind in EXPERTS:
        before, after = (f"{kind} → {stage}" for stage in STAGES.values())
        if f"learned: {kind}-ppo" not in labels:
            continue
        if kind != "all":  # cloned from all three, which have no table of their own
            claim.append(Check(before, kind, "mean_train_loss"))
        claim.append(Check(after, before, "mean_train_loss"))
        names.append(after)
    control = [Check(name, f"{MATCHED} of {name}") for name in names]
    control += [Check(name, TUNED) for name in names]
    return SourceTable(
        title="Learned scheduler: baseline → BC → BC + PPO",
        reported=REPORTED,
        differs=(
            f"{settings.total_steps} steps on the data that is there for 60 epochs of MNIST; one "
            "projection for train and test data, a horizon of the whole run, PPO that samples"
        ),
        columns=COLUMNS,
        rows=rows,
        claim=judge("BC beats its expert, PPO beats BC, in mean train loss", claim, rows),
        control=judge("In validation loss, against fair baselines", control, rows),
    )


def method_labels(settings: EvaluateSettings) -> dict[str, str]:
    """How the methods of the records are called in the table, in its order."""
    policies: dict[str, str] = {}
    for name in settings.policies:
        kind, _, stage = name.rpartition("-")
        policies[name] = f"{kind} → {STAGES[stage]}" if stage in STAGES else f"learned: {name}"
    experts = {kind: kind for kind in EXPERTS if kind != "all"}
    own = {f"learned: {name}": label for name, label in policies.items()}
    matched = {f"{MATCHED}: {name}": f"{MATCHED} of {label}" for name, label in policies.items()}
    return {**experts, **own, **matched, TUNED: TUNED}


def _row(record: RunRecord, label: str) -> Row:
    figures = {name: getattr(record, name) for name in COLUMNS}
    return {"method": label, "seed": record.seed, **figures}
