"""What sets the LR in ``lrenv finetune``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest

from lrenv.errors import InputError
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.single import SingleTrainee
from lrenv.training.finetune import finetune_task
from lrenv.training.methods import learned_lr, policy_of, start_method
from lrenv.training.peers import PEERS
from lrenv.training.settings import FinetuneSettings, LanguageModelSettings

NAMES = [n for n in get_args(get_type_hints(FinetuneSettings)["method"]) if n != "learned"]
SETTINGS = FinetuneSettings(trainee="convnet-mnist", total_steps=6)
LLM = LanguageModelSettings(data="babyai", model="tiny-llama")


def trainee_of(settings: FinetuneSettings) -> SingleTrainee:
    return build_trainee(finetune_task(settings))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-3), ("sgd", 1e-2)])
def test_methods_start_from_the_usual_lr(name: str, optimizer: str, lr: float) -> None:
    settings = replace(SETTINGS, method=name, optimizer=optimizer)
    trainee = trainee_of(settings)
    start_method(settings, policy_of(settings), trainee)
    assert {float(group["lr"]) for group in trainee.optimizer.param_groups} == {lr}


@pytest.mark.parametrize("name", NAMES)
def test_methods_say_what_a_run_must_know_to_go_on(name: str) -> None:
    run = PEERS[name].start(trainee_of(SETTINGS), 1e-3, 1.0)
    assert run.finish is None
    assert all(part.state_dict() for part in run.parts)
    assert len(run.parts) == (2 if name == "alr-pairwise" else 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "gen", "policy": "mlp"}, "--policy with the method learned, got policy='mlp'"),
        ({"method": "gen", "rollback": True}, "--rollback with the method learned"),
        ({"method": "gen", "layerwise": "lc"}, "--layerwise with the method learned"),
        ({"lr": 0.1}, "--lr with another method than learned, got lr=0.1 with learned"),
        ({"method": "gen", "lr": math.nan}, "a finite lr above 0, got nan"),
        ({"method": "gen", "lr": math.inf}, "a finite lr above 0, got inf"),
        ({"method": "gen", "lr": 0.0}, "a finite lr above 0, got 0.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        policy_of(replace(SETTINGS, **change))


def test_a_policy_is_told_what_the_trainee_knows() -> None:
    trainee = trainee_of(SETTINGS)
    scheduler = learned_lr(trainee, "default", rollback=True, layerwise="lc")
    assert scheduler.controller.plan.total_steps == SETTINGS.total_steps
    observer = scheduler.controller.observer.state_dict()
    assert observer["steps_per_epoch"] == trainee.steps_per_epoch
    assert len(scheduler.multipliers or []) == len(list(trainee.model.parameters()))


def test_what_is_frozen_for_a_while_is_in_the_checkpoint() -> None:
    trainee = trainee_of(replace(SETTINGS, trainee="lora-llm", llm=LLM))
    named = dict(trainee.model.named_parameters())
    adapters = [name for name, param in named.items() if param.requires_grad]
    named[adapters[0]].requires_grad_(False)

    saved = set(trainee.state_dict()["model"])
    assert saved >= set(adapters)
    assert not any(name.endswith("base_layer.weight") for name in saved)


def test_pairs_are_of_layers_that_train() -> None:
    trainee = trainee_of(replace(SETTINGS, trainee="lora-llm", llm=LLM))
    for name, param in trainee.model.named_parameters():
        if ".layers.0." in name:
            param.requires_grad_(False)
    run = PEERS["alr-pairwise"].start(trainee, 1e-3, 1.0)
    assert len(run.parts) == 1  # one layer makes no pair
