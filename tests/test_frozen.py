"""Policy files: a round trip, and the refusal of whatever does not fit."""

import hashlib
import json
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lrenv.controller import Controller, run_interval
from lrenv.errors import PolicyFileError
from lrenv.observation import FEATURES
from lrenv.policies import frozen
from lrenv.policies.frozen import FrozenPolicy, build_actor, feature_list, load_policy, save_policy
from lrenv.policies.network import Head


@pytest.fixture(scope="module")
def actor() -> Head:
    torch.manual_seed(0)
    return Head("scale-free", len(FEATURES))


@pytest.fixture
def card(actor, tmp_path) -> Path:
    return save_policy(tmp_path / "made", "mine", actor, {"preset": "scale-free", "note": "ü"})


def edit(card: Path, **changes: object) -> None:
    data = json.loads(card.read_text()) | changes
    card.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def decide(policy: FrozenPolicy, run, total_steps: int = 60) -> torch.Tensor:
    """The policy's action at every decision of a run."""
    controller = Controller(total_steps, run.traits, preset=policy.preset)
    actions = []
    while not controller.done:
        run_interval(run, controller)
        controller.close()
        if controller.deciding:
            actions.append(policy.act(controller))
            controller.act(actions[-1])
    return torch.cat(actions)


@pytest.mark.parametrize("handle", ["card", "weights", "bare", "text"])
def test_a_loaded_policy_acts_as_the_saved_one(actor, card, scripted_run, handle):
    path = {
        "card": card,
        "weights": card.with_suffix(".safetensors"),
        "bare": card.with_suffix(""),
        "text": str(card),
    }[handle]
    loaded = load_policy(path)

    expected = decide(FrozenPolicy(actor, {"preset": "scale-free"}), scripted_run())
    assert torch.equal(decide(loaded, scripted_run()), expected)
    assert expected.std() > 0
    assert (loaded.name, loaded.preset, loaded.card["note"]) == ("mine", "scale-free", "ü")
    assert not any(p.requires_grad for p in loaded.actor.parameters())


def test_a_classic_policy_acts_as_the_saved_one(tmp_path, scripted_run):
    torch.manual_seed(0)
    head = Head("classic", 6)
    card = save_policy(tmp_path, "old", head, {"preset": "classic"})
    loaded = load_policy(card)

    assert loaded.card["features"] == [
        "left",
        "train_loss",
        "val_loss",
        "grad_norm_0",
        "grad_norm_1",
        "log10_lr",
    ]
    expected = FrozenPolicy(head, {"preset": "classic", "features": feature_list("classic", head)})
    actions = decide(loaded, scripted_run(n_layers=2))
    assert torch.equal(actions, decide(expected, scripted_run(n_layers=2)))


def test_a_classic_policy_serves_one_architecture(tmp_path, scripted_run):
    card = save_policy(tmp_path, "old", Head("classic", 6), {"preset": "classic"})

    with pytest.raises(PolicyFileError, match="2 layers for the policy 'old', got 4; classic"):
        decide(load_policy(card), scripted_run(n_layers=4))


def test_acting_is_the_full_pass_over_the_run(actor, scripted_run):
    run, policy = scripted_run(), FrozenPolicy(actor, {"preset": "scale-free"})
    controller = Controller(80, run.traits)
    actions = []
    while not controller.done:
        run_interval(run, controller)
        controller.close()
        if controller.deciding:
            actions.append(policy.act(controller))
            controller.act(actions[-1])

    full = actor(torch.stack(controller.observer.tokens[:-1], 1))[0]
    torch.testing.assert_close(torch.cat(actions), full, rtol=0, atol=1e-5)


def test_a_policy_that_comes_late_reads_the_decisions_before(actor, scripted_run):
    policy, run = FrozenPolicy(actor, {"preset": "scale-free"}), scripted_run()
    controller = Controller(80, run.traits)
    while len(controller.observer.tokens) < 9:
        run_interval(run, controller)
        controller.close()
        if controller.deciding:
            action = policy.act(controller)
            if len(controller.observer.tokens) < 9:
                controller.act(action)

    controller.memory = {}
    torch.testing.assert_close(policy.act(controller), action, rtol=0, atol=1e-5)


def test_a_decision_can_be_asked_for_twice(actor, scripted_run):
    run, policy = scripted_run(), FrozenPolicy(actor, {"preset": "scale-free"})
    controller = Controller(80, run.traits)
    while not controller.deciding:
        run_interval(run, controller)
        controller.close()

    first = policy.act(controller)
    assert torch.equal(policy.act(controller), first)
    controller.act(first)
    run_interval(run, controller)
    controller.close()
    full = actor(torch.stack(controller.observer.tokens, 1))[0]
    torch.testing.assert_close(policy.act(controller), full[-1:], rtol=0, atol=1e-5)


def test_the_card_describes_the_weights(actor, card):
    data = json.loads(card.read_text())
    weights = card.with_suffix(".safetensors")

    assert data["format"] == frozen.FORMAT_VERSION
    assert data["features"] == list(FEATURES)
    assert data["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(p.name for p in card.parent.iterdir()) == ["mine.json", "mine.safetensors"]


def test_weights_are_safetensors_and_no_pickle(card):
    weights = card.with_suffix(".safetensors")

    with safe_open(weights, "pt") as file:
        assert "head.weight" in file.keys()  # noqa: SIM118
    with pytest.raises((ValueError, IndexError, pickle.UnpicklingError)):
        list(pickletools.genops(weights.read_bytes()))


def test_loading_unpickles_nothing(card):
    code = (
        "import pickle, torch, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('unpickled')\n"
        "from lrenv.policies.frozen import load_policy\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        "print(load_policy(sys.argv[1]).name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(card)], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, "mine\n"), result.stderr


def test_a_pickle_in_place_of_the_weights_is_refused(card, actor):
    weights = card.with_suffix(".safetensors")
    torch.save(actor.state_dict(), weights)
    edit(card, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())

    with pytest.raises(PolicyFileError, match="weights that fit the card"):
        load_policy(card)


@pytest.mark.parametrize("length", [0, 7, 1000, -1])
def test_a_truncated_file_is_refused(card, length):
    weights = card.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:length])

    with pytest.raises(PolicyFileError, match="truncated or altered; copy it again"):
        load_policy(card)


@pytest.mark.parametrize("length", [0, 7, 1000, -1])
def test_a_truncated_file_under_its_own_hash_is_refused(card, length):
    weights = card.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:length])
    edit(card, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())

    with pytest.raises(PolicyFileError, match="weights that fit the card"):
        load_policy(card)


@pytest.mark.parametrize("place", [20, -3])
def test_an_altered_byte_is_refused(card, place):
    weights = card.with_suffix(".safetensors")
    blob = bytearray(weights.read_bytes())
    blob[place] ^= 1
    weights.write_bytes(blob)

    with pytest.raises(PolicyFileError, match="to have the hash in its card, got another"):
        load_policy(card)


def test_weights_of_another_shape_are_refused(card):
    weights = card.with_suffix(".safetensors")
    state = load_file(weights)
    state["head.weight"] = state["head.weight"][:, :-1].contiguous()
    save_file(state, weights)
    edit(card, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())

    with pytest.raises(PolicyFileError, match=r"fit the card .*size mismatch for head\.weight"):
        load_policy(card)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_refused(card, version):
    edit(card, format=version)

    with pytest.raises(PolicyFileError, match=rf"Expected format 1 in .*, got {version!r}; use"):
        load_policy(card)


@pytest.mark.parametrize(
    "features",
    [list(FEATURES[1:]), [*FEATURES, "new"], list(reversed(FEATURES)), [*FEATURES, "lr"], []],
)
def test_another_list_of_features_is_refused(card, features):
    edit(card, features=features)

    with pytest.raises(PolicyFileError, match=r"features of this version in .*, got another list"):
        load_policy(card)


def test_a_policy_reads_the_features_of_its_card_alone(tmp_path):
    torch.manual_seed(0)
    few = [name for name in FEATURES if not name.startswith("window_")]
    head = build_actor(few)
    loaded = load_policy(save_policy(tmp_path, "few", head, {"preset": "scale-free"}))
    tokens, other = torch.randn(2, 1, 9, len(FEATURES))
    read = [FEATURES.index(name) for name in few]
    other[..., read] = tokens[..., read]

    assert loaded.card["features"] == few
    assert torch.equal(loaded.actor(tokens), head(tokens))
    assert torch.equal(loaded.actor(tokens), loaded.actor(other))
    assert not torch.equal(loaded.actor(tokens), loaded.actor(torch.zeros_like(tokens)))


@pytest.mark.parametrize("features", [None, 49, 1.5, True])
def test_features_that_are_no_list_are_refused(card, features):
    edit(card, features=features)

    with pytest.raises(PolicyFileError, match="features"):
        load_policy(card)


@pytest.mark.parametrize("key", ["name", "preset", "features", "sha256"])
def test_a_missing_key_is_refused(card, key):
    edit(card, **{key: ...})

    with pytest.raises(PolicyFileError, match=f"Expected the key '{key}' in .*, got none; copy"):
        load_policy(card)


@pytest.mark.parametrize("preset", ["other", None, ["classic"]])
def test_another_preset_is_refused(card, preset):
    edit(card, preset=preset)

    with pytest.raises(PolicyFileError, match=r"Expected preset among .*'scale-free', 'classic'"):
        load_policy(card)


@pytest.mark.parametrize("text", ["", "{", "nonsense", "\x00"])
def test_a_damaged_card_is_refused(card, text):
    card.write_text(text)

    with pytest.raises(PolicyFileError, match=r"Expected a policy card at .*mine\.json, got:"):
        load_policy(card)


@pytest.mark.parametrize("text", ["[]", "3", '"card"', "null"])
def test_a_card_of_another_kind_is_refused(card, text):
    card.write_text(text)

    with pytest.raises(PolicyFileError, match="Expected format 1 in"):
        load_policy(card)


def test_a_card_that_is_no_text_is_refused(card):
    card.write_bytes(b"\xff\xfe\x00\x80")

    with pytest.raises(PolicyFileError, match="Expected a policy card at"):
        load_policy(card)


def test_missing_weights_are_named(card):
    card.with_suffix(".safetensors").unlink()

    with pytest.raises(PolicyFileError, match=r"weights of 'mine' at .*; keep both files together"):
        load_policy(card)


@pytest.mark.parametrize("name", ["none/there.json", "no/such/there", "there.safetensors"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(
        PolicyFileError, match=r"card at .*there\.json, got nothing; check the path"
    ):
        load_policy(name)


@pytest.mark.parametrize("name", ["unknown", "", "defaultt"])
def test_an_unknown_name_is_refused(monkeypatch, name):
    monkeypatch.setattr(frozen, "shipped_policies", lambda: ["a", "b"])

    with pytest.raises(PolicyFileError, match=f"among a, b or a path, got {name!r}"):
        load_policy(name)


def test_a_name_may_hold_a_dot(actor, tmp_path):
    save_policy(tmp_path, "mine-0.2", actor, {"preset": "scale-free"})

    assert load_policy(tmp_path / "mine-0.2").name == "mine-0.2"
    assert load_policy(tmp_path / "mine-0.2.json").name == "mine-0.2"


def test_saving_again_replaces_the_policy(actor, card):
    torch.manual_seed(1)
    other = Head("scale-free", len(FEATURES))
    save_policy(card.parent, "mine", other, {"preset": "scale-free"})

    assert torch.equal(load_policy(card).actor.head.weight, other.head.weight)
    assert not torch.equal(other.head.weight, actor.head.weight)
