"""``lrenv explain``: a page on why a run got its learning rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from lrenv.errors import InputError, LrenvError
from lrenv.explain import SIGNALS, attention, explain
from lrenv.files import write_atomic
from lrenv.policies.experts import cosine
from lrenv.policies.frozen import FrozenPolicy, load_policy
from lrenv.training.bench.monitor import is_finetune
from lrenv.training.progress import console
from lrenv.training.report_page import simple_page
from lrenv.training.run_report import figure_html
from lrenv.training.settings import ExplainSettings

_BODY = Template("""
<figure>$rates<figcaption>The learning rate that the policy chose, beside a cosine from the highest
of them.</figcaption></figure>
<figure>$shares<figcaption>What moved the learning rate: the change of log LR at each decision, less
the one that the policy would have chosen had it never seen a group of signals. Red raised the
learning rate, blue lowered it.</figcaption></figure>
<figure>$looks<figcaption>What each decision looked at: attention to itself and to those before,
mean over layers and heads.</figcaption></figure>""")


@dataclass(frozen=True)
class _Run:
    policy: FrozenPolicy
    decisions: list[dict[str, Any]]
    total_steps: int


def explain_run(settings: ExplainSettings) -> Path:
    """Write ``explain.html`` into a folder with a decision log; returns its path.

    Raises:
        InputError: The folder holds no run of a policy, or one of a classic policy.
    """
    run = _read(settings.run, settings.policy)
    title = f"Why these learning rates: {run.policy.name} in {settings.run.name}"
    shares = explain(run.policy, run.decisions)
    body = _BODY.substitute(rates=_rates(run), shares=_shares(shares), looks=_looks(run))
    page = simple_page(title, body)
    path = settings.run / "explain.html"
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    strongest = sorted(SIGNALS, key=lambda name: -sum(abs(s["moved_by"][name]) for s in shares))
    console.print(f"Signals by what they moved: {', '.join(strongest)}.")
    console.print(f"Page: {path.resolve()}", markup=False, soft_wrap=True)
    return path


def _read(folder: Path, named: str | None) -> _Run:
    try:
        log, path = folder / "decisions.jsonl", folder / "settings.json"
        kept = json.loads(path.read_text()) if path.exists() or not log.exists() else {}
        settings = kept if is_finetune(kept) else {}  # or of a job of the user's own
        if (method := settings.get("method", "learned")) != "learned":
            raise ValueError(f"one whose LR {method} set, not a policy")
        if not log.exists():
            raise ValueError("one that is not finished")
        decisions = [json.loads(line) for line in log.read_text().splitlines()]
        if not decisions:
            raise ValueError("a log without decisions, of a run that is too short")
        name = named or settings.get("policy") or decisions[0].get("policy")
        if name is None:
            raise ValueError("a log that names no policy")
        policy = load_policy(name)
        if decisions[0].get("policy_sha256", policy.card["sha256"]) != policy.card["sha256"]:
            raise ValueError(f"the log of another policy than {name!r}; name its card by --policy")
        return _Run(policy, decisions, int(decisions[-1]["total_steps"]))
    except LrenvError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"Expected a run folder of lrenv finetune, or one with a decisions.jsonl, at {folder}, "
            f"got: {error}; name the folder that --output named."
        ) from None


def _rates(run: _Run) -> str:
    from plotly import graph_objects as go

    steps = [entry["step"] for entry in run.decisions]
    lrs = [entry["lr"] for entry in run.decisions]
    peak = max(lrs)
    lines = [
        go.Scatter(x=steps, y=lrs, name=run.policy.name, line={"shape": "hv"}),
        go.Scatter(
            x=steps,
            y=[cosine(step, run.total_steps, peak) for step in steps],
            name=f"cosine from {peak:.2g}",
            line={"dash": "dot"},
        ),
    ]
    return figure_html(lines, "learning rate, log scale", log=True, with_library=True)


def _shares(shares: Sequence[dict[str, Any]]) -> str:
    from plotly import graph_objects as go

    grid = [[entry["moved_by"][name] for entry in shares] for name in SIGNALS]
    heat = go.Heatmap(
        z=grid,
        x=[str(entry["step"]) for entry in shares],
        y=list(SIGNALS),
        colorscale="RdBu_r",
        zmid=0.0,
        colorbar={"title": "Δ log LR"},
    )
    return figure_html([heat], "")


def _looks(run: _Run) -> str:
    from plotly import graph_objects as go

    steps = [str(entry["step"]) for entry in run.decisions]
    weights = attention(run.policy, run.decisions).tolist()
    heat = go.Heatmap(z=weights, x=steps, y=steps, colorscale="Viridis")
    return figure_html([heat], "decision at step")
