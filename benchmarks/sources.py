"""The tables of our sources, in their own form: ``python benchmarks/sources.py``.

LC sensitivity, GeN and Hi-DLR, Layer Dance, and the learned scheduler: each in small, with the
baselines that the source has and fair ones beside them, and a line that says whether the source's
claim held. Validation data chooses, test data is read for final figures. Every run is a file, so
that a stopped benchmark goes on; all of it takes about an hour on one core.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from sources_claims import SourceTable
from sources_dance import DanceSetup, dance_table
from sources_dlr import CONVNET, dlr_table
from sources_lc import LCSetup, lc_table
from sources_peft import PEFTSetup, peft_table
from sources_scheduler import scheduler_table

import lrenv
from lrenv.errors import InputError
from lrenv.files import make_folder
from lrenv.training.progress import console
from lrenv.training.runfolder import read_json, write_json

TableName = Literal["lc", "hi-dlr", "layer-dance", "scheduler"]


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    tables: tuple[TableName, ...] = get_args(TableName)
    """Sources whose tables are made."""
    seeds: int = 3
    """Seeds of each method; LoRA, whose runs take minutes, has one."""
    output: Path = Path("runs/sources")
    """Where the runs go; a stopped benchmark goes on from there."""
    results: Path = Path("benchmarks/results/sources.json")
    """Where the figures go; tables that are not made again stay there."""


TABLES: dict[TableName, Callable[[Settings], list[SourceTable]]] = {
    "lc": lambda s: [lc_table(s.output, LCSetup())],
    "hi-dlr": lambda s: [
        peft_table(s.output, PEFTSetup(), s.seeds),
        dlr_table(s.output, CONVNET, s.seeds),
    ],
    "layer-dance": lambda s: [dance_table(s.output, DanceSetup(), s.seeds)],
    "scheduler": lambda s: [scheduler_table(s.output, s.seeds)],
}


def main(settings: Settings) -> None:
    """Make the tables, print them and keep their figures."""
    if settings.seeds < 1:
        raise InputError(f"Expected at least one seed, got {settings.seeds}; raise it.")
    torch.set_num_threads(1)
    make_folder(settings.output)
    for name in settings.tables:
        made = TABLES[name](settings)
        for table in made:
            table.show()
        keep(settings.results, name, made)
    console.print(f"Figures: {settings.results.resolve()}", markup=False, soft_wrap=True)


def keep(path: Path, name: str, made: list[SourceTable]) -> None:
    """Put the tables of one source into the file of all."""
    tables = read_json(path)["tables"] if path.exists() else {}
    environment = {
        "lrenv": lrenv.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    tables[name] = {"environment": environment, "made": [table.to_json() for table in made]}
    write_json(path, {"tables": tables})


if __name__ == "__main__":
    main(tyro.cli(Settings))
