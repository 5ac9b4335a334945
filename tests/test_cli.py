"""The command line: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lrenv.observation import FEATURES
from lrenv.policies.frozen import save_policy, shipped_policies
from lrenv.policies.network import Head
from lrenv.trainees.language_model import load_language_model
from lrenv.trainees.tasks import load_data
from lrenv.training.cli import main
from lrenv.training.finetune import finetune_task
from lrenv.training.runfolder import write_state
from lrenv.training.settings import FinetuneSettings, LanguageModelSettings

LLM = ["finetune", "--trainee", "lora-llm", "--data", "babyai", "--model", "tiny-llama"]
SETTINGS = {"trainee": "lora-llm", "total_steps": 20}


def llm_settings(data: str) -> LanguageModelSettings:
    return LanguageModelSettings(data=data, model="tiny-llama")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    torch.manual_seed(0)
    actor = Head("scale-free", len(FEATURES))
    with torch.no_grad():
        actor.head.bias.fill_(0.1)
    card = {"preset": "scale-free", "made_by": "a test", "training_families": "none"}
    return str(save_policy(tmp_path / "policy", "random", actor, card))


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["finetune", "--trainee", "nope"], "Expected a trainee among mlp-mnist"),
        (["finetune", "--policy", "nope"], "Expected a policy among"),
        (["finetune", "--policy", "defualt"], "got 'defualt'; did you mean default?"),
        (["finetune", "--policy", "no/such.json"], "Expected a policy card at no/such.json"),
        (["finetune", "--optimizer", "nope"], "Expected an optimizer among sgd"),
        (["finetune", "--total-steps", "0"], "total_steps of at least 1"),
        (["evaluate", "--trainee", "nope"], "Expected a trainee among mlp-mnist"),
        (["finetune", "--checkpoint-every", "0"], "checkpoint_every of at least 1, got 0"),
        (["finetune", "--device", "gpu"], "a device that torch has here, such as cpu; got 'gpu'"),
        (["finetune", "--seed", "9" * 20], f"a seed from 0 to 2147483647, got {'9' * 20}; name"),
        (["train", "classic", "--seed", "-1"], "Expected a seed from 0 to 2147483647, got -1;"),
        (["finetune", "--lr", "0.1"], "--lr with another method than learned, got lr=0.1"),
        (["finetune", "--method", "gen", "--lr", "-1"], "Expected a finite lr above 0, got -1.0"),
        (
            ["finetune", "--method", "lc", "--layerwise", "lc"],
            "--layerwise with the method learned, got layerwise='lc' with lc; leave it out",
        ),
        (["finetune", "--rank", "4"], "with the trainee lora-llm alone, got them with mlp-mnist"),
        ([*LLM, "--data", "nope"], "Expected instructions among virtualhome, virtualhome-titles"),
        ([*LLM, "--data", "no.jsonl"], "Expected a JSONL file at no.jsonl"),
        ([*LLM, "--targets", "c_attn"], "down_proj, gate_proj, k_proj"),
        ([*LLM, "--max-length", "3"], "within 3 tokens, got none of"),
        ([*LLM, "--max-length", "1"], "max_length of at least 2"),
        ([*LLM, "--model", "gpt"], "Expected smollm2-135m, tiny-llama, a folder"),
        (["evaluate", "--seeds", "0"], "at least one seed, got 0; raise it"),
        (["evaluate", "--bad-option", "1"], "--bad-option"),
        (["evaluate", "--seeds", "many"], "many"),
        (["train", "classic", "--expert", "step"], "step"),
        (["train", "wizard"], "wizard"),
        ([], "Missing subcommand"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    policy: str,
    tmp_path: Path,
    argv: list[str],
    text: str,
) -> None:
    if argv[:1] == ["finetune"] and not {"--policy", "--method"} & {*argv}:
        argv = [*argv, "--policy", policy, "--output", str(tmp_path / "out")]
    if argv[:1] == ["evaluate"]:
        argv = [*argv, "--policies", policy, "--output", str(tmp_path / "out")]
    assert text in fails(capsys, *argv)


def test_a_command_without_its_packages_names_the_extra() -> None:
    code = "import sys; sys.modules['optuna'] = None; from lrenv.training import cli; "
    argv = [sys.executable, "-c", code + "cli.main(['tune'])"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "lrenv: Expected the package optuna, got no such module; install it: pip install "
        '-e ".[ray]" in the checkout of lrenv.\n'
    )


def test_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], policy: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "out")
    assert "Expected a folder that can be written" in fails(
        capsys, "finetune", "--policy", policy, "--output", out
    )


def test_finetune_writes_model_log_and_metrics(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out[draft]"
    argv = ["finetune", "--trainee", "mlp-mnist-classic", "--policy", policy]
    argv += ["--total-steps", "40", "--output", str(out)]
    main(argv)
    printed = "".join(capsys.readouterr().out.split())
    assert "Trainedalready" not in printed
    assert printed.count("out[draft]") == 2  # over the table and behind it
    main(["explain", str(out)])
    assert "out[draft]/explain.html" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["method"] == "random policy"
    assert 0.0 <= metrics["test_accuracy"] <= 1.0
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    assert decisions[0]["step"] == 3
    assert set(decisions[0]["features"]) == set(FEATURES)
    assert decisions[0]["features"]["epochs_known"] == 1
    assert (out / "model.safetensors").stat().st_size > 4 * 48 * 48
    (out / "metrics.json").unlink()
    main(argv)
    assert "Trained already" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text()) == metrics


@pytest.fixture
def instructions(tmp_path: Path) -> str:
    path = tmp_path / "my.jsonl"
    rows = [{"prompt": f"count to {i}", "response": "one two " * (i % 3 + 1)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def llm(policy: str, data: str, out: Path) -> list[str]:
    argv = ["finetune", "--trainee", "lora-llm", "--model", "tiny-llama", "--policy", policy]
    return [*argv, "--data", data, "--dropout", "0.1", "--answers", "2", "--output", str(out)]


def test_finetune_of_a_language_model(policy: str, instructions: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main([*llm(policy, instructions, out), "--total-steps", "20"])

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"].startswith("my.jsonl ")
    assert 0.0 <= metrics["rougeL"] <= 1.0
    assert metrics["general_loss_after"] != metrics["general_loss_before"]
    model = PeftModel.from_pretrained(load_language_model("tiny-llama"), str(out / "adapter"))
    task = finetune_task(FinetuneSettings(**SETTINGS | {"llm": llm_settings(instructions)}))
    data = load_data(task.data)
    loss, _, count = task.spec.score(model.eval(), data.x_val, data.y_val)
    assert loss.item() / count == pytest.approx(metrics["val_loss"], rel=1e-5)
    assert "<h2>Results</h2>" in (out / "report.html").read_text()
    assert not list(out.glob(".*"))


def test_a_run_does_not_go_on_with_other_data(
    capsys: pytest.CaptureFixture[str], policy: str, instructions: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*llm(policy, instructions, out), "--total-steps", "2"]
    main(argv)
    path = Path(instructions)
    path.write_text(path.read_text() + "\n\n")
    main(argv)  # the same pairs
    capsys.readouterr()
    path.write_text(path.read_text().replace("one two", "three"))
    assert "was started with, got data='my.jsonl " in fails(capsys, *argv)

    before = json.loads((out / "settings.json").read_text())
    del before["data"]
    (out / "settings.json").write_text(json.dumps(before))
    main(argv)
    assert "Trained already" in capsys.readouterr().out
    assert json.loads((out / "settings.json").read_text())["data"]


@pytest.mark.parametrize("trainee", ["mlp-mnist-classic", "lora-llm"])
def test_killed_finetune_resumes_to_the_same_weights(
    policy: str, instructions: str, tmp_path: Path, trainee: str
) -> None:
    common = ["finetune", "--trainee", trainee, "--policy", policy]
    if trainee == "lora-llm":
        common = llm(policy, instructions, tmp_path)[:-2]
    else:
        common += ["--layerwise", "lc"]
    common += ["--checkpoint-every", "10", "--output"]
    main([*common, str(tmp_path / "whole"), "--total-steps", "150"])
    code = (
        "import sys, os, signal; from lrenv.training import finetune, cli\n"
        "write, count = finetune.write_state, [0]\n"
        "def kill(*a):\n"
        "    write(*a); count[0] += 1\n"
        "    if count[0] == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "finetune.write_state = kill\n"
        "cli.main(sys.argv[1:])"
    )
    argv = [*common, str(tmp_path / "killed"), "--total-steps", "150"]
    # the number of threads changes rounding, and these tests run on one
    killed = subprocess.run(
        [sys.executable, "-c", code, *argv],
        check=False,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -9
    assert not (tmp_path / "killed" / "metrics.json").exists()
    main(argv)
    weights = "adapter/adapter_model.safetensors" if trainee == "lora-llm" else "model.safetensors"
    for name in (weights, "decisions.jsonl", "metrics.json"):
        whole, resumed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes(), name


@pytest.mark.parametrize("trainee", ["convnet-mnist", "lora-llm"])
@pytest.mark.parametrize("method", ["lc", "gen", "hi-dlr", "alr", "alr-pairwise"])
def test_other_methods_set_the_lr_and_resume(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    instructions: str,
    tmp_path: Path,
    method: str,
    trainee: str,
) -> None:
    argv = ["finetune", "--trainee", trainee, "--method", method, "--lr", "0.003"]
    if trainee == "lora-llm":
        argv += ["--model", "tiny-llama", "--data", instructions, "--dropout", "0.1"]
        argv += ["--answers", "0"]
    argv += ["--total-steps", "45", "--checkpoint-every", "15", "--output"]
    main([*argv, str(tmp_path / "whole")])
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["method"] == method
    assert not (tmp_path / "whole" / "decisions.jsonl").exists()
    rows = (tmp_path / "whole" / "progress.jsonl").read_text().splitlines()
    lrs, losses = ([json.loads(row)[key] for row in rows[1:-1]] for key in ("lr", "loss"))
    assert len(lrs) == 45
    assert sum(losses[-10:]) < sum(losses[:10])
    assert (set(lrs) == {0.003}) == (method == "lc")  # whose LRs differ within steps alone
    assert f"one whose LR {method} set" in fails(capsys, "explain", str(tmp_path / "whole"))

    def stop(path: Path, state: dict[str, Any]) -> None:
        write_state(path, state)
        if len(state["losses"]) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrenv.training.finetune.write_state", stop)
        with pytest.raises(SystemExit, match="130"):
            main([*argv, str(tmp_path / "killed")])
    main([*argv, str(tmp_path / "killed")])
    weights = "adapter/adapter_model.safetensors" if trainee == "lora-llm" else "model.safetensors"
    for name in (weights, "metrics.json"):
        whole, resumed = (tmp_path / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == resumed.read_bytes(), name


def test_folder_of_another_run_is_refused(
    capsys: pytest.CaptureFixture[str], policy: str, tmp_path: Path
) -> None:
    common = ["finetune", "--trainee", "mlp-mnist-classic", "--policy", policy, "--output"]
    common += [str(tmp_path / "out"), "--total-steps"]
    main([*common, "20"])
    assert "total_steps=30 instead of 20; use another --output" in fails(capsys, *common, "30")


def test_evaluate_writes_results_and_report(
    capsys: pytest.CaptureFixture[str], policy: str, tmp_path: Path
) -> None:
    out = tmp_path / "out[draft]"
    argv = ["evaluate", "--trainee", "mlp-mnist-classic", "--policies", policy]
    argv += ["--optimizers", "adam", "--total-steps", "30", "--seeds", "2"]
    main([*argv, "--hints", "0.1", "0.001", "--output", str(out)])
    printed = capsys.readouterr().out
    assert "out[draft]/report.html" in printed
    page = (out / "report.html").read_text()
    assert "LR-matched constant" in page
    assert "constant: random" not in printed + page  # short where there is one policy
    results = json.loads((out / "results.json").read_text())
    summary = {row["method"]: row for row in results["summary"]}
    assert set(summary) == {
        "learned: random",
        "linear",
        "cosine",
        "cosine, tuned",
        "polynomial",
        "wsd",
        "constant",
        "LR-matched constant: random",
        "tuned expert",
        "expert tuned on another seed",
    }
    assert summary["learned: random"]["runs"] == 4
    assert summary["tuned expert"]["geometric_mean_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert summary["tuned expert"]["tuning_runs"] == 39
    # the policy ignores hints, so its runs from both agree
    learned = [r["val_loss"] for r in results["runs"] if r["method"] == "learned: random"]
    assert learned[0] == learned[1]
    assert (out / "report.html").stat().st_size > 10**6


def test_policies_are_listed_with_the_default_first(capsys: pytest.CaptureFixture[str]) -> None:
    main(["policies"])
    rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    serves = {name.strip(): what for name, what in rows if name.strip()}

    assert sorted(serves) == shipped_policies()
    assert next(iter(serves)) == "default"
    assert "any model" in serves["mlp"]
    assert "two layers" in serves["cosine-bc"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from lrenv.training.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'gymnasium', 'stable_baselines3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("mode", ["sweep", "grid"])
def test_range_test_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    folder = tmp_path / "out[draft]"
    main(["range-test", "--mode", mode, "--steps", "40", "--output", str(folder)])

    found = json.loads((folder / "range_test.json").read_text())
    assert 1e-4 < found["suggestion"] < 1e-1
    assert found["low"] <= found["best"] <= found["high"]
    assert "loss by learning rate" in (folder / "range_test.html").read_text().lower()
    out = capsys.readouterr().out
    assert "out[draft]/range_test.html" in out
    assert f"Suggested peak LR: {found['suggestion']:.2g}" in out.replace("\n", " ")
    assert fails(capsys, "range-test", "--low", "1", "--high", "0.1").count("Expected 0 < low") == 1
