"""The command line: ``lrenv train``, ``finetune``, ``evaluate``, ``explain`` and more.

Nothing heavy is imported before a command is known, so that ``lrenv --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NoReturn

try:
    import tyro
except ImportError:
    raise SystemExit(
        "lrenv: Expected the packages of the command line, got no tyro; install them: "
        'pip install -e ".[train]" in the checkout of lrenv.'
    ) from None

from lrenv.errors import InputError, LrenvError
from lrenv.training.bench.settings import (
    DatabaseExportSettings,
    DatabaseImportSettings,
    DatabaseListSettings,
    DatabaseMergeSettings,
    DatabaseQuerySettings,
    DatabaseShowSettings,
    MonitorSettings,
    TuneSettings,
)
from lrenv.training.settings import (
    ClassicSettings,
    EvaluateSettings,
    ExplainSettings,
    FinetuneSettings,
    GeneralistSettings,
    RangeTestSettings,
    ReportSettings,
)


@dataclass(frozen=True)
class PoliciesSettings:
    """List the shipped policies."""


_Train = Annotated[
    Annotated[GeneralistSettings, tyro.conf.subcommand("generalist")]
    | Annotated[ClassicSettings, tyro.conf.subcommand("classic")],
    None,
]


@dataclass(frozen=True)
class TrainSettings:
    """Train a policy: the generalist, or a classic one of the source."""

    recipe: tyro.conf.OmitSubcommandPrefixes[_Train]


_Database = Annotated[
    Annotated[DatabaseListSettings, tyro.conf.subcommand("list")]
    | Annotated[DatabaseShowSettings, tyro.conf.subcommand("show")]
    | Annotated[DatabaseQuerySettings, tyro.conf.subcommand("query")]
    | Annotated[DatabaseExportSettings, tyro.conf.subcommand("export")]
    | Annotated[DatabaseImportSettings, tyro.conf.subcommand("import")]
    | Annotated[DatabaseMergeSettings, tyro.conf.subcommand("merge")],
    None,
]


@dataclass(frozen=True)
class DatabaseSettings:
    """Look into the policy database, and move trials between files and databases."""

    command: tyro.conf.OmitSubcommandPrefixes[_Database]


_COMMANDS: dict[str, Any] = {
    "train": TrainSettings,
    "finetune": FinetuneSettings,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
    "explain": ExplainSettings,
    "range-test": RangeTestSettings,
    "tune": TuneSettings,
    "db": DatabaseSettings,
    "monitor": MonitorSettings,
    "policies": PoliciesSettings,
}

_RUNNERS: dict[type, tuple[str, str]] = {
    GeneralistSettings: ("lrenv.training.generalist", "train_generalist"),
    ClassicSettings: ("lrenv.training.classic", "train_classic"),
    FinetuneSettings: ("lrenv.training.finetune", "finetune"),
    EvaluateSettings: ("lrenv.training.evaluate", "evaluate"),
    ReportSettings: ("lrenv.training.merge", "report"),
    ExplainSettings: ("lrenv.training.explain_page", "explain_run"),
    RangeTestSettings: ("lrenv.training.range_page", "run_range_test"),
    TuneSettings: ("lrenv.training.bench.tune", "tune"),
    MonitorSettings: ("lrenv.training.bench.monitor", "monitor"),
    DatabaseListSettings: ("lrenv.training.bench.db_command", "list_trials"),
    DatabaseShowSettings: ("lrenv.training.bench.db_command", "show_trials"),
    DatabaseQuerySettings: ("lrenv.training.bench.db_command", "query_policies"),
    DatabaseExportSettings: ("lrenv.training.bench.db_command", "export_database"),
    DatabaseImportSettings: ("lrenv.training.bench.db_command", "import_database"),
    DatabaseMergeSettings: ("lrenv.training.bench.db_command", "merge_databases"),
    PoliciesSettings: ("lrenv.training.policies_list", "list_policies"),
}

_EXTRAS = {"ray": "ray", "optuna": "ray"}
"""Packages that some commands cannot do without, and the extra that brings them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; exits 2 for bad input and 1 for a failed run, with one line on stderr."""
    settings = _parse(argv)
    if isinstance(settings, TrainSettings):
        settings = settings.recipe
    elif isinstance(settings, DatabaseSettings):
        settings = settings.command
    module, function = _RUNNERS[type(settings)]
    try:
        getattr(import_module(module), function)(settings)
    except InputError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        cure = f'pip install -e ".[{_EXTRAS[package]}]" in the checkout of lrenv'
        _fail(f"Expected the package {package}, got no such module; install it: {cure}.", 2)
    except (LrenvError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("Stopped; the same command goes on from here.", 130)


def _parse(argv: Sequence[str] | None) -> Any:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.extras.subcommand_cli_from_dict(
                _COMMANDS,
                prog="lrenv",
                description="A learned learning-rate scheduler with nothing to tune.",
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code not in (0, None):
            text = re.sub(r"[│╭╮╰╯─┌┐└┘]+", " ", errors.getvalue())
            _fail(re.sub(r"\s+", " ", text).strip() or "Expected a command; see lrenv --help.", 2)
        raise


def _fail(message: str, code: int) -> NoReturn:
    line = re.sub(r"\s+", " ", message)
    sys.stderr.write(f"lrenv: {line}\n")
    raise SystemExit(code)
