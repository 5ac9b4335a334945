"""Instruction data: where the pairs come from and how they are split."""

import json
import sys
from importlib import metadata
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
    everything = {pair for part in splits(data) for pair in part}
    relax = next(p for p in everything if p.response.endswith("find couch\nsit couch"))
    assert relax.response.splitlines()[0].split()[0] == "walk"
    assert not any(set("[]<>()") & set(pair.response) for pair in everything)


def test_virtualhome_without_its_package(monkeypatch):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(instructions.metadata, "distribution", missing)
    with pytest.raises(ResourceError, match=r"--no-deps virtualhome-eval==0\.1\.1"):
        instructions._programs()


def test_the_plans_of_babyai_solve_its_missions():
    pairs = babyai_pairs(range(9))

    assert len(pairs) == 9
    assert babyai_pairs([4]) == pairs[4:5]
    for seed, pair in enumerate(pairs):
        env = gymnasium.make(instructions._LEVELS[seed % 3]).unwrapped
        env.reset(seed=seed)
        assert pair.prompt.startswith(env.mission)
        reward = 0.0
        for action in pair.response.split():
            assert reward == 0.0
            _, reward, *_ = env.step(env.actions[action])
        assert reward > 0.0


def test_missions_that_take_too_long_are_left_out(monkeypatch):
    longest = max(len(p.response.split()) for p in babyai_pairs(range(6)))
    monkeypatch.setattr(instructions, "_LONGEST_PLAN", longest - 1)

    assert 0 < len(babyai_pairs(range(6))) < 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": 3}\n', "line 2 of .*: prompt of 3"),
        ('\n{"prompt": "a"}\n', "line 2 of .*: no response"),
        ("[1]\n{}\nx\n", r"line 1 of .*: a list \(2 more such lines\)"),
        ('{"prompt": " ", "response": "b"}', "line 1 of .*: an empty prompt"),
        ("{", "line 1 of .*: no JSON, Expecting"),
        ('{"prompt": "a", "response": "b"}', "enough prompts .* got 1 of 1 prompts; add some"),
        ("", "got 0 of 0 prompts"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "my.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_instructions(str(path))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for name in ("missing.jsonl", "bytes.jsonl"):
        with pytest.raises(InputError, match=f"Expected a JSONL file at .*{name}, got"):
            load_instructions(str(tmp_path / name))
    with pytest.raises(InputError, match=r"among virtualhome, .*babyai, or the path .*got 'plans'"):
        load_instructions("plans")


@given(st.lists(st.integers(0, 30), min_size=60, max_size=120))
def test_no_prompt_is_in_two_splits(numbers):
    pairs = [Pair(str(n), f"answer {i % 2}") for i, n in enumerate([*range(10), *numbers])]
    data = instructions._split_groups("some", pairs, lambda p: p.prompt, 0.8, "")

    prompts = [{pair.prompt for pair in part} for part in splits(data)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == len({p.prompt for p in pairs})
    assert sum(map(len, splits(data))) == len(set(pairs))
    assert len(data.train) > len(data.val) + len(data.test)


class Table(list):
    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def hub(monkeypatch, rows: dict[str, list[dict[str, str]]] | Exception) -> None:
    def load_dataset(name: str):
        assert name == "detek/robot-task-planning"
        if isinstance(rows, Exception):
            raise rows
        return {split: Table(table) for split, table in rows.items()}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_the_set_of_the_hub(monkeypatch):
    table = [{"instruction": f"do {i}", "output": f"step {i}"} for i in range(20)]
    hub(monkeypatch, {"train": table[:12], "validation": table[12:]})

    data = instructions._robot_task_planning()

    assert data.train[0] == Pair("do 0", "step 0")
    assert [len(part) for part in splits(data)] == [12, 4, 4]
    assert len({pair for part in splits(data) for pair in part}) == 20
    hub(monkeypatch, {"train": table})
    assert [len(part) for part in splits(instructions._robot_task_planning())] == [16, 2, 2]


def test_the_hub_out_of_reach(monkeypatch):
    hub(monkeypatch, ConnectionError("no route\nmore"))
    with pytest.raises(ResourceError, match=r"got: no route; connect and pip install datasets"):
        instructions._robot_task_planning()


def test_columns_of_other_names(monkeypatch):
    hub(monkeypatch, {"train": [{"a": json.dumps(1), "b": ""}]})
    with pytest.raises(ResourceError, match=r"Expected columns among instruction, .*got a, b"):
        instructions._robot_task_planning()
