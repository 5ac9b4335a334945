"""Instruction data: pairs of prompt and response to fine-tune language models on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lrenv.errors import InputError, ResourceError
from lrenv.trainees.data import SPLIT_SEED

_HUB_ID = "detek/robot-task-planning"
_TIMEOUT_S = 5.0
_PROMPT_COLUMNS = ("instruction", "input", "prompt", "question", "task")
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
    stat = path.stat() if path.is_file() else None
    return _load(name, path.absolute(), stat and (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _load(name: str, *_state: object) -> Instructions:
    if name in INSTRUCTIONS:
        return INSTRUCTIONS[name]()
    pairs = read_pairs(Path(name))
    # Part of the name, by which results that are kept are told from those of other data.
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()[:8]
    data = _split_groups(Path(name).name, pairs, f"the file {name}")
    return replace(data, name=f"{data.name} {digest}")


def read_pairs(path: Path) -> list[Pair]:
    """Read the pairs of a JSONL file; blank lines are skipped.

    Raises:
        InputError: The file cannot be read, or a line is no pair: the first one is named.
    """
    try:
        # Not splitlines, which would break a line at U+2028, legal within JSON.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"Expected a JSONL file at {path}, got: {error}; name another.") from None
    found = [(number, _pair(line)) for number, line in enumerate(lines, 1) if line.strip()]
    faults = [(number, fault) for number, fault in found if isinstance(fault, str)]
    if faults:
        number, fault = faults[0]
        others = f" ({len(faults) - 1} more such lines)" if len(faults) > 1 else ""
        raise InputError(
            f"Expected an object with the strings prompt and response at line {number} of {path}, "
            f"got {fault}{others}; mend it or delete it."
        )
    return [pair for _, pair in found if isinstance(pair, Pair)]


def _pair(line: str) -> Pair | str:
    """The pair of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
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
    name: str, pairs: Iterable[Pair], note: str, share: float = 0.8, by_first_line: bool = False
) -> Instructions:
    """Split by prompts at random: a share of the pairs to train on, half the rest to choose by."""
    pairs = list(dict.fromkeys(pairs))
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        key = pair.prompt.split("\n")[0] if by_first_line else pair.prompt
        groups.setdefault(key, []).append(pair)
    names = sorted(groups)
    random.Random(SPLIT_SEED).shuffle(names)
    parts: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    bounds = (share * len(pairs), (1 + share) / 2 * len(pairs))
    taken = 0
    for key in names:
        middle = taken + len(groups[key]) / 2  # a group goes where its middle lies
        parts[sum(middle > bound for bound in bounds)].extend(groups[key])
        taken += len(groups[key])
    if not all(parts):
        raise InputError(
            f"Expected pairs of enough prompts for three splits in {name}, got {len(pairs)} of "
            f"{len(groups)} prompts; add some (10 prompts with one response each are enough)."
        )
    train, val, test = map(tuple, parts)
    return Instructions(name, train, val, test, note)


def _virtualhome() -> Instructions:
    note = "VirtualHome's household programs from virtualhome-eval, split by description"
    return _split_groups("virtualhome", _programs(), note, 0.7)


def _virtualhome_titles() -> Instructions:
    note = "VirtualHome's household programs from virtualhome-eval, split by title"
    return _split_groups("virtualhome-titles", _programs(), note, 0.7, by_first_line=True)


def _programs() -> list[Pair]:
    """Read the programs: a line of title, one of description, then ``[ACTION] <object> (id)``."""
    try:
        found = metadata.distribution("virtualhome-eval").locate_file(_PROGRAMS)
        paths = sorted(Path(str(found)).rglob("*.txt"))
    except metadata.PackageNotFoundError:
        paths = []
    if not paths:
        raise ResourceError(
            "Expected the programs of the package virtualhome-eval, got none; install it: pip "
            "install --force-reinstall --no-deps virtualhome-eval==0.1.1."
        )
    pairs = []
    for path in paths:
        title, description, *steps = map(str.strip, path.read_text("utf-8").splitlines())
        # "[WALK] <couch> (1.352)" becomes "walk couch"
        program = [re.sub(r"\s*\([^)]*\)|[][<>]", "", step).lower() for step in steps if step]
        pairs.append(Pair(f"{title}\n{description}", "\n".join(program)))
    return pairs


def _robot_task_planning() -> Instructions:
    try:
        sets = _from_hub()
    except Exception as error:  # datasets and its clients raise what they like
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ResourceError(
            f"Expected {_HUB_ID} through the library datasets, got: {reason}; connect and pip "
            "install datasets, or use virtualhome."
        ) from None
    train = _hub_pairs(sets["train"])
    seen: set[str] = set()
    held: dict[str, tuple[Pair, ...]] = {}
    for split, names in {"val": ("validation", "val"), "test": ("test",)}.items():
        part = next((_hub_pairs(sets[name]) for name in names if name in sets), None)
        if part is None:  # a tenth of the prompts to train on
            prompts = sorted({pair.prompt for pair in train} - seen)
            chosen = set(random.Random(SPLIT_SEED).sample(prompts, -(-len(prompts) // 10)))
            part = [pair for pair in train if pair.prompt in chosen]
        held[split] = tuple(pair for pair in dict.fromkeys(part) if pair.prompt not in seen)
        seen |= {pair.prompt for pair in held[split]}
    rest = tuple(pair for pair in dict.fromkeys(train) if pair.prompt not in seen)
    return Instructions("robot-task-planning", rest, note=f"{_HUB_ID} of the hub", **held)


def _from_hub() -> Any:
    from datasets import config, load_dataset
    from huggingface_hub import get_session

    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            answers.append(get_session().head(config.HF_ENDPOINT, timeout=_TIMEOUT_S))

    # In a thread, as no timeout limits the look-up of a name; datasets itself would retry for long.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    if not answers and not config.HF_HUB_OFFLINE:
        raise ConnectionError("no answer (HF_HUB_OFFLINE=1 reads the copy that datasets may have)")
    return load_dataset(_HUB_ID)


def _hub_pairs(rows: Any) -> list[Pair]:
    names = list(rows.column_names)
    prompts = [name for name in _PROMPT_COLUMNS if name in names]
    responses = [name for name in _RESPONSE_COLUMNS if name in names]
    if not prompts or not responses:
        raise ResourceError(
            f"Expected a column among {', '.join(_PROMPT_COLUMNS)} and one among "
            f"{', '.join(_RESPONSE_COLUMNS)} in {_HUB_ID}, got {', '.join(names)}; use virtualhome."
        )
    # An input completes its instruction, and may be empty.
    width = 1 + (prompts[:2] == ["instruction", "input"])
    pairs = (Pair(_text(row, prompts[:width]), _text(row, responses[:1])) for row in rows)
    return [pair for pair in pairs if pair.prompt and pair.response]


def _text(row: Any, columns: list[str]) -> str:
    return "\n".join(str(row[name]) for name in columns if row[name]).strip()


def _babyai() -> Instructions:
    note = "missions of BabyAI with the plans of its expert, from minigrid"
    return _split_groups("babyai", babyai_pairs(range(_EPISODES)), note)


def babyai_pairs(seeds: Sequence[int]) -> list[Pair]:
    """Let the expert of BabyAI solve a mission for each seed; unsolved ones are left out."""
    try:
        import gymnasium
        from minigrid.utils.baby_ai_bot import BabyAIBot
    except ImportError as error:
        raise ResourceError(
            f'Expected minigrid, got: {error}; pip install -e ".[llm]" in the checkout of lrenv.'
        ) from None
    # Levels print what they reject.
    with contextlib.redirect_stdout(io.StringIO()):
        envs = [gymnasium.make(level).unwrapped for level in _LEVELS]
        found = [_solve(envs[seed % len(envs)], BabyAIBot, seed) for seed in seeds]
    return [pair for pair in found if pair is not None]


def _solve(env: Any, bot_class: Any, seed: int) -> Pair | None:
    env.reset(seed=seed)
    prompt = f"{env.mission}\n{_grid(env)}"
    bot, last = bot_class(env), None
    plan: list[str] = []
    for _ in range(_LONGEST_PLAN):
        try:
            last = bot.replan(last)
        except Exception:  # the bot asserts, or raises what it likes, where it is at a loss
            return None
        plan.append(env.actions(last).name)
        if env.step(last)[1] > 0.0:
            return Pair(prompt, " ".join(plan))
    return None


def _grid(env: Any) -> str:
    """The objects of a level and the agent, one a line."""
    heading = ("right", "down", "left", "up")[env.agent_dir]
    agent = f"agent at {env.agent_pos[0]},{env.agent_pos[1]} facing {heading}"
    cells, width = enumerate(env.grid.grid), env.grid.width
    objects = [(i % width, i // width, o) for i, o in cells if o is not None and o.type != "wall"]
    return "\n".join([agent, *(f"{o.color} {o.type} at {x},{y}" for x, y, o in objects)])


INSTRUCTIONS: dict[str, Callable[[], Instructions]] = {
    "virtualhome": _virtualhome,
    "virtualhome-titles": _virtualhome_titles,
    "robot-task-planning": _robot_task_planning,
    "babyai": _babyai,
}
"""Sets of instructions by name."""
