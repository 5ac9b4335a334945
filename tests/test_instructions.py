"""Instruction data: where the pairs come from and how they are split."""

import json
import os
import re
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrenv.errors import InputError, ResourceError
from lrenv.trainees import instructions
from lrenv.trainees.instructions import Instructions, Pair, babyai_pairs, load_instructions


def has_virtualhome() -> bool:
    try:
        metadata.distribution("virtualhome-eval")
    except metadata.PackageNotFoundError:
        return False
    return True


def splits(data: Instructions) -> list[tuple[Pair, ...]]:
    return [data.train, data.val, data.test]


TELEVISION = Pair(
    "Watch TV\nI go to the the living room, sit down on the sofa, and then I switch on the TV with "
    "the TV remote",
    "walk home_office\nwalk remote_control\nfind remote_control\ngrab remote_control\nfind couch\n"
    "sit couch\nfind television\nswitchon television",
)

MISSION_0 = Pair(
    "go to the green key\nagent at 6,5 facing left\ngreen key at 4,4", "forward forward right"
)


def title(pair: Pair) -> str:
    return pair.prompt.splitlines()[0]


@pytest.mark.skipif(not has_virtualhome(), reason="needs virtualhome-eval")
@pytest.mark.parametrize(
    ("name", "key", "sizes"),
    [
        ("virtualhome", lambda p: p.prompt, [362, 77, 78]),
        ("virtualhome-titles", title, [363, 68, 86]),
    ],
)
def test_virtualhome_is_split_without_leaks(name, key, sizes):
    data = load_instructions(name)

    assert [len(part) for part in splits(data)] == sizes
    keys = [{key(pair) for pair in part} for part in splits(data)]
    assert not keys[0] & keys[1]
    assert not (keys[0] | keys[1]) & keys[2]
    everything = [pair for part in splits(data) for pair in part]
    assert len(everything) == len(set(everything))
    assert TELEVISION in everything
    assert not any(set("[]<>()") & set(pair.response) for pair in everything)


@pytest.mark.skipif(not has_virtualhome(), reason="needs virtualhome-eval")
def test_virtualhome_is_the_same_in_any_order_of_files(monkeypatch):
    first = instructions._virtualhome()
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *a: sorted(rglob(*a), reverse=True))

    assert instructions._virtualhome() == first
    assert load_instructions("virtualhome") is load_instructions("virtualhome")


def test_virtualhome_without_its_package(monkeypatch):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(instructions.metadata, "distribution", missing)
    with pytest.raises(ResourceError, match=r"got none; .* --no-deps virtualhome-eval==0\.1\.1"):
        instructions._programs()


def test_programs_are_read_compactly(monkeypatch, tmp_path):
    found = SimpleNamespace(locate_file=lambda path: tmp_path)
    monkeypatch.setattr(instructions.metadata, "distribution", lambda name: found)
    with pytest.raises(ResourceError, match=r"got none; .*--force-reinstall --no-deps"):
        instructions._virtualhome()
    (tmp_path / "a").mkdir()
    steps = "[Walk] <Phone> (1.10)\n[PUTBACK] <cup> (2) <table> (3)\n[STANDUP]\n"
    text = f" Call \nÉva, by phone.\n\n\n{steps}"
    (tmp_path / "a/b.txt").write_text(text, encoding="utf-8")

    expected = Pair("Call\nÉva, by phone.", "walk phone\nputback cup table\nstandup")
    assert instructions._programs() == [expected]


def test_the_plans_of_babyai_solve_its_missions():
    pairs = babyai_pairs(range(9))

    assert len(pairs) == 9
    assert babyai_pairs([4]) == pairs[4:5]
    assert "red ball\nagent at 3,4 facing up\ngrey key at 5,2\n" in pairs[1].prompt
    for seed, pair in enumerate(pairs):
        env = gymnasium.make(instructions._LEVELS[seed % 3]).unwrapped
        env.reset(seed=seed)
        assert pair.prompt.startswith(env.mission)
        reward = 0.0
        for action in pair.response.split():
            assert reward == 0.0
            _, reward, *_ = env.step(env.actions[action])
        assert reward > 0.0


@pytest.mark.parametrize(("longest", "expected"), [(3, [MISSION_0]), (2, [])])
def test_missions_that_take_too_long_are_left_out(monkeypatch, longest, expected):
    monkeypatch.setattr(instructions, "_LONGEST_PLAN", longest)

    assert babyai_pairs([0]) == expected


def test_missions_of_a_bot_at_a_loss_are_left_out(monkeypatch):
    from minigrid.utils.baby_ai_bot import BabyAIBot

    replan = BabyAIBot.replan

    def lost(bot, last):
        assert "red" not in bot.mission.mission
        return replan(bot, last)

    monkeypatch.setattr(BabyAIBot, "replan", lost)
    assert babyai_pairs([0, 1]) == [MISSION_0]


def test_babyai_without_minigrid(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid.utils.baby_ai_bot", None)
    with pytest.raises(ResourceError, match=r'Expected minigrid, got: .*install -e "\.\[llm\]"'):
        babyai_pairs([0])


def test_babyai_in_text_and_in_splits(monkeypatch):
    monkeypatch.setattr(instructions, "_EPISODES", 30)
    data = instructions._babyai()

    assert MISSION_0 in [pair for part in splits(data) for pair in part]
    assert [len(part) for part in splits(data)] == [24, 3, 3]
    assert data == instructions._babyai()


def test_a_file_is_split_and_cached_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, rows = Path("my.jsonl"), [{"prompt": f"p{i}", "response": "r"} for i in range(10)]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    first = load_instructions("my.jsonl")

    assert re.fullmatch(r"my\.jsonl [0-9a-f]{8}", first.name)
    assert first.note == "the file my.jsonl"
    assert [len(part) for part in splits(first)] == [8, 1, 1]
    assert {p.prompt for part in splits(first) for p in part} == {f"p{i}" for i in range(10)}
    assert load_instructions("my.jsonl") is first
    os.utime(path, ns=(0, 0))
    again = load_instructions("my.jsonl")
    assert again is not first
    assert again == first
    path.write_text(path.read_text().replace("p3", "q3"))
    assert load_instructions("my.jsonl").name != first.name


def test_a_file_may_have_any_ending_and_unicode_within_its_lines(tmp_path):
    path = tmp_path / "pairs.txt"
    lines = [f'{{"prompt": "{i}\u2028é", "response": "r", "id": {i}}}' for i in range(10)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())

    prompts = [p.prompt for part in splits(load_instructions(str(path))) for p in part]
    assert sorted(prompts) == [f"{i}\u2028é" for i in range(10)]


AT = "Expected an object with the strings prompt and response at line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": 3}\n', "2 of .*my.jsonl, got prompt of 3;"),
        ('\n{"prompt": "a"}\n', "2 of .*, got no response;"),
        ("[1]\n{}\nx\n", r"1 of .*, got a list \(2 more such lines\); mend it or delete it"),
        ('{"prompt": " ", "response": "b"}', "1 of .*, got an empty prompt;"),
        ('{"prompt": "a", "response": "\\t"}', "1 of .*, got an empty response;"),
        ('{"prompt": "a", "response": null}', "1 of .*, got response of None;"),
        ("{", "1 of .*, got no JSON, Expecting"),
        ("[" * 100_000, "1 of .*, got no JSON, maximum recursion"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    path = tmp_path / "my.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{AT} {message}"):
        load_instructions(str(path))


@pytest.mark.parametrize(("n_prompts", "n_pairs"), [(0, 0), (1, 9), (5, 5)])
def test_files_with_too_few_prompts_are_refused(tmp_path, n_prompts, n_pairs):
    path = tmp_path / "my.jsonl"
    rows = [{"prompt": str(i % n_prompts), "response": str(i)} for i in range(n_pairs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = rf"splits in my.jsonl, got {n_pairs} of {n_prompts} prompts; add some \(10 prompts"
    with pytest.raises(InputError, match=message):
        load_instructions(str(path))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("missing.jsonl", "bytes.jsonl", "folder.jsonl"):
        with pytest.raises(InputError, match=f"Expected a JSONL file at .*{name}, got: "):
            load_instructions(str(tmp_path / name))
    with pytest.raises(InputError, match=r"among virtualhome, .*babyai, or the path .*got 'plans'"):
        load_instructions("plans")


@given(st.lists(st.integers(0, 30), min_size=60, max_size=120))
def test_no_prompt_is_in_two_splits(numbers):
    pairs = [Pair(str(n), f"answer {i % 2}") for i, n in enumerate([*range(10), *numbers])]
    data = instructions._split_groups("some", pairs, "")

    prompts = [{pair.prompt for pair in part} for part in splits(data)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == len({p.prompt for p in pairs})
    assert sum(map(len, splits(data))) == len(set(pairs))
    assert len(data.train) > len(data.val) + len(data.test)


class Table(list):
    @property
    def column_names(self) -> list[str]:
        return list(self[0])


Rows = dict[str, list[dict[str, str | None]]]


def hub(monkeypatch, rows: Rows | Exception, offline: bool = False) -> None:
    """Let the library datasets find ``rows``, or raise them, and the hub answer."""

    def load_dataset(name: str):
        assert name == "detek/robot-task-planning"
        if isinstance(rows, Exception):
            raise rows
        return {split: Table(table) for split, table in rows.items()}

    config = SimpleNamespace(HF_ENDPOINT="https://hub", HF_HUB_OFFLINE=offline)
    library = SimpleNamespace(load_dataset=load_dataset, config=config)
    monkeypatch.setitem(sys.modules, "datasets", library)
    session(monkeypatch, lambda url, timeout: url)


def session(monkeypatch, head) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))


def table(*numbers: int) -> list[dict[str, str | None]]:
    return [{"instruction": f"do {i}", "output": f"step {i}"} for i in numbers]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ({"train": table(*range(20)), "validation": table(*range(20, 25))}, [18, 5, 2]),
        ({"train": table(*range(20))}, [16, 2, 2]),
        ({"train": table(*range(9)), "val": table(9, 10), "test": table(11)}, [9, 2, 1]),
        # what is held out is taken from the rest, and from the test split
        ({"train": table(1, 1, 2, 3), "val": table(2, 4), "test": table(2, 3, 5)}, [1, 2, 2]),
    ],
)
def test_the_set_of_the_hub_in_three_splits(monkeypatch, rows, sizes):
    hub(monkeypatch, rows)
    data = instructions._robot_task_planning()

    assert [len(part) for part in splits(data)] == sizes
    prompts = {row["instruction"] for part in rows.values() for row in part}
    assert sorted(p.prompt for part in splits(data) for p in part) == sorted(prompts)
    assert data == instructions._robot_task_planning()
    assert data.note == "detek/robot-task-planning of the hub"


@pytest.mark.parametrize("prompt", ["instruction", "input", "prompt", "question", "task"])
@pytest.mark.parametrize("response", ["output", "response", "plan", "answer"])
def test_columns_of_the_hub(prompt, response):
    rows = [{"id": "7", response: " b ", prompt: "a"}, {"id": "8", response: None, prompt: "c"}]

    assert instructions._hub_pairs(Table(rows)) == [Pair("a", "b")]


def test_an_input_completes_its_instruction():
    rows = [{"instruction": "do", "input": i, "output": "x"} for i in ("this", "", None)]

    prompts = [pair.prompt for pair in instructions._hub_pairs(Table(rows))]
    assert prompts == ["do\nthis", "do", "do"]


def test_columns_of_other_names(monkeypatch):
    hub(monkeypatch, {"train": [{"a": "1", "b": "", "plan": "x"}]})
    message = r"Expected a column among instruction, .*task and one among output, .*got a, b, plan;"
    with pytest.raises(ResourceError, match=message):
        instructions._robot_task_planning()


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [ConnectionError, OwnError])
def test_the_hub_fails(monkeypatch, error):
    hub(monkeypatch, error("no route\nmore"))
    with pytest.raises(ResourceError, match=r"got: no route; connect and pip install datasets, or"):
        load_instructions("robot-task-planning")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match=r"got: .*datasets.*; connect and pip install datasets"):
        load_instructions("robot-task-planning")


def test_a_silent_hub_is_given_up_and_its_copy_is_read(monkeypatch):
    rows, released = {"train": table(*range(20))}, threading.Event()
    hub(monkeypatch, rows)
    monkeypatch.setattr(instructions, "_TIMEOUT_S", 0.05)
    session(monkeypatch, lambda url, timeout: released.wait(5))
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"got: no answer \(HF_HUB_OFFLINE=1 reads the copy"):
        instructions._robot_task_planning()
    assert time.monotonic() - start < 2
    released.set()

    def refuse(url, timeout):
        raise OwnError

    session(monkeypatch, refuse)
    with pytest.raises(ResourceError, match="got: no answer"):
        instructions._robot_task_planning()
    hub(monkeypatch, rows, offline=True)
    session(monkeypatch, refuse)
    assert len(instructions._robot_task_planning().train) == 16
