"""Settings of the training commands; plain dataclasses, so that ``lrenv --help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lrenv.errors import InputError

_LAST_SEED = 2**31 - 1  # numpy's seeds have 32 bits, and runs add small numbers to theirs


def check_seed(seed: int) -> None:
    """Raise :class:`InputError` for a seed that not all random numbers can be drawn from."""
    if not 0 <= seed <= _LAST_SEED:
        raise InputError(f"Expected a seed from 0 to {_LAST_SEED}, got {seed}; name another.")


def check_least(settings: object, **least: int) -> None:
    """Raise :class:`InputError` if a setting is below the least value that is given by its name."""
    for name, bound in least.items():
        if (value := getattr(settings, name)) < bound:
            raise InputError(f"Expected {name} of at least {bound}, got {value}; raise it.")


@dataclass(frozen=True)
class GeneralistSettings:
    """Train a general policy: tuned experts, cloning with recovery labels, PPO on the outcome.

    The defaults are the first step of the shipped policy "default"; its card says what followed.
    """

    output: Path = Path("runs/generalist")
    """Run folder; a run that was stopped goes on from there."""
    workers: int = 1
    """Searches and rollouts side by side, by Ray if more than one; their results stay the same."""
    ray_address: str | None = None
    """Ray cluster to use instead, by auto or host:port; needs lrenv on every machine of it."""
    hours: float = 3.85
    """Budget of machine time for PPO, in hours over all restarts; 0 keeps the clone."""
    seed: int = 0
    """Seed of everything random, the tasks of PPO among it; take another one to go on from a policy
    by PPO on tasks that are new to it, an even one to go on from broad to diverse. Tasks that are
    demonstrated or held out stay the same."""
    family: str = "balanced"
    """Family of the training tasks, by its name in lrenv.trainees.families, or a function of your
    own from a number to a task, by module:name; lasting tasks are of 1,000 steps or more, see
    longest_run."""
    start: str | None = None
    """Policy whose weights training starts from, by name or path."""
    hidden: tuple[str, ...] = ()
    """Features that the policy does not read, each by its name or the start of it."""
    tasks: int = 720
    """Tasks whose tuned experts are demonstrated; a tenth of them tells when to stop cloning."""
    held_out: int = 48
    """Further tasks whose tuned experts measure the export, the same in all runs of a family."""
    selection: int = 96
    """Further tasks that the export is selected on, by its losses over those at the start of
    PPO."""
    group: int = 8
    """Rollouts of one and the same task."""
    rounds: int = 1
    """Rounds of cloning; each adds rollouts of the policy to the demonstrations. 0 leaves the
    start, or untrained weights, to PPO as they are."""
    clone_steps: int = 2000
    """Optimizer steps of cloning a round."""
    last_clone_steps: int = 1000
    """Optimizer steps of cloning in the last round, whose clone PPO starts from."""
    longest_demonstration: int = 800
    """Longest runs that are demonstrated, in optimizer steps."""
    clone_batch: int = 64
    """Runs in a batch of cloning."""
    clone_lr: float = 1e-3
    """Peak LR of cloning."""
    last_clone_lr: float = 1e-3
    """Peak LR of cloning in the last round."""
    groups_per_update: int = 96
    """Tasks rolled out for one PPO update, all of them new."""
    longest_run: int = 800
    """Longest runs that PPO rolls out, in optimizer steps; a long one costs as much as many short
    ones."""
    critic_warmup: int = 2
    """PPO updates in which only the critic learns."""
    updates: int = 100_000
    """PPO updates at most."""
    evaluate_every: int = 8
    """PPO updates between two evaluations on the selection tasks; the last is evaluated too."""
    epochs: int = 4
    """Passes over the rollouts of one update."""
    minibatch: int = 256
    """Runs in an optimizer step of PPO, about."""
    clip: float = 0.2
    """Clip range of PPO."""
    gae_lambda: float = 0.97
    """λ of generalised advantage estimation; the discount is 1."""
    kl_clone: float = 0.01
    """Weight of the KL term to the clone."""
    target_kl: float = 0.05
    """Mean KL to the last policy at which an update ends."""
    action_std: float = 0.125
    """Deviation of the actions while training; ±1 is the largest change of log LR."""
    noise_memory: float = 0.9
    """Correlation of the action noise at successive decisions; a policy undoes white noise."""
    average_decay: float = 0.8
    """Decay of the moving average of the actor's weights, which is what is exported."""
    actor_lr: float = 6e-5
    """LR of the actor in PPO at the start; falls linearly to a tenth over the budget."""
    critic_lr: float = 5e-4
    """LR of the critic in PPO."""


@dataclass(frozen=True)
class ClassicSettings:
    """Train a policy of the source: clone one expert or all three, then SB3's PPO."""

    expert: Literal["linear", "cosine", "polynomial", "all"] = "cosine"
    """The expert to clone."""
    output: Path = Path("runs/classic")
    """Folder of the runs, one sub-folder an expert; a run that was stopped goes on from there."""
    seed: int = 0
    """Seed of demonstrations and training."""
    total_steps: int = 1200
    """Length of an episode in optimizer steps; 100 epochs of MNIST-5k."""
    peak: float = 1e-4
    """Peak LR of the experts; the source's."""
    demonstrations: int = 9
    """Demonstrated runs, shared between the experts."""
    clone_steps: int = 240
    """Optimizer steps of cloning the actor."""
    critic_steps: int = 60
    """Optimizer steps of warming the critic up on the demonstrations' returns."""
    batch_size: int = 60
    """Decisions in a batch."""
    clone_lr: float = 3e-3
    """Peak LR of cloning."""
    n_envs: int = 4
    """Environments side by side in PPO."""
    total_timesteps: int = 1680
    """Decisions of PPO; 0 keeps the clone alone."""
    learning_rate: float = 1e-3
    """LR of PPO."""
    n_epochs: int = 5
    """Passes over the rollouts of one PPO update."""
    gae_lambda: float = 0.92
    """λ of generalised advantage estimation."""
    gamma: float = 0.99
    """Discount."""
    clip_range: float = 0.2
    """Clip range of PPO."""
    max_grad_norm: float = 0.4
    """Gradient clip of PPO."""
    action_std: float = 0.1
    """Initial deviation of the actions."""
    target_kl: float = 0.05
    """KL to the last policy at which an update ends."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Compare policies with expert schedules and peers, default and tuned, over paired seeds."""

    policies: tuple[str, ...] = ("default",)
    """Policies, each by the name of a shipped one or the path of its card."""
    suite: Literal["trainee", "unseen-mlps", "unseen", "unseen-heavy", "harsh"] = "trainee"
    """One trainee, or test tasks that no policy is trained on: 24 MLPs on full-size MNIST, 24 tasks
    of six families, these and two whose tuned experts take hours, or 14 in harsh conditions."""
    rollback: bool = False
    """Run each policy with a way back to the last good weights too."""
    layerwise: bool = False
    """Run each policy with LC's multipliers on its LR too."""
    validate: bool = False
    """Run each policy once more, told the validation loss 20 times a run."""
    peers: tuple[str, ...] = ()
    """Other people's methods to compare with, by name, or all; they need lrenv[peers]."""
    tune_peers: bool = False
    """Run each peer at the best of 5 scales too."""
    trainee: str = "mlp-mnist"
    """Trainee, see the README for the names."""
    optimizers: tuple[str, ...] = ("adam", "sgd")
    """Optimizers of the trainee: sgd or rmsprop (momentum 0.9), adam, adamw (weight decay 0.01)."""
    total_steps: int = 600
    """Length of a run in optimizer steps."""
    seeds: int = 3
    """Seeds; every method trains from the same weights on the same batches."""
    hints: tuple[float, ...] = (1e-3,)
    """LRs that the learned policies' jobs start with."""
    peak: float | None = None
    """Peak LR of the untuned experts and of peers; None for the usual default: 1e-3, under SGD with
    momentum 1e-2, without 1e-1."""
    output: Path = Path("runs/evaluate")
    """Where the report and the results go."""
    workers: int = 1
    """Comparisons side by side, by Ray if more than one; results stay the same."""
    ray_address: str | None = None
    """Ray cluster to use instead, by auto or host:port; needs lrenv on every machine of it."""


@dataclass(frozen=True)
class ReportSettings:
    """Join the results of several evaluations, of any machines, into one table and report."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of lrenv evaluate, or their results.json; of a run that several hold, the first
    counts."""
    output: Path = Path("runs/report")
    """Where the report and the joint results go."""


@dataclass(frozen=True)
class LanguageModelSettings:
    """The language model of the trainee lora-llm, and the instructions it learns."""

    data: str = "virtualhome"
    """Instructions: virtualhome, virtualhome-titles, babyai, robot-task-planning, or a JSONL file
    of objects with prompt and response."""
    model: str = "smollm2-135m"
    """Model: smollm2-135m, tiny-llama, a folder, or an id of the Hugging Face Hub."""
    rank: int = 8
    """Rank of LoRA's matrices."""
    alpha: float = 16.0
    """Scale of LoRA's update, divided by the rank."""
    dropout: float = 0.0
    """Dropout of the input of LoRA's update."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Modules that LoRA is added to."""
    quantized: bool = False
    """Keep the frozen weights in 4 bits; needs CUDA and bitsandbytes."""
    max_length: int = 128
    """Tokens of a sequence, at most."""
    all_tokens: bool = False
    """Count the prompt's tokens in the loss too, not the response's alone."""
    batch_size: int = 4
    """Sequences in a batch."""
    answers: int = 32
    """Test prompts that are answered for ROUGE at the end; 0 for none."""


@dataclass(frozen=True)
class ExplainSettings:
    """Explain the learning rates of a run: signals, attention, and a cosine beside them."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of lrenv finetune, or one with a decisions.jsonl of LearnedLR.save_decisions()."""
    policy: str | None = None
    """Policy that decided, by name or path; by default the one that the run names."""


@dataclass(frozen=True)
class RangeTestSettings:
    """Find the learning rates a trainee can be trained at, by a sweep or a grid of short runs."""

    trainee: str = "mlp-mnist"
    """Trainee, see the README for the names."""
    optimizer: str = "adam"
    """Optimizer: sgd or rmsprop (momentum 0.9), adam, or adamw (weight decay 0.01)."""
    mode: Literal["sweep", "grid"] = "grid"
    """One run whose LR rises, or a short run at each of several LRs: dearer, and closer."""
    low: float = 1e-6
    """Lowest LR."""
    high: float = 10.0
    """Highest LR."""
    steps: int | None = None
    """Optimizer steps of the sweep, or of each run of the grid; None for 100."""
    points: int = 15
    """LRs of the grid."""
    output: Path = Path("runs/range-test")
    """Where page and figures go."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Train a trainee under a pretrained policy; save the model, the decision log and a report.

    Other methods can set the LR instead.
    """

    trainee: str = "mlp-mnist"
    """Trainee, see the README for the names; lora-llm is a language model of your own."""
    method: Literal["learned", "lc", "gen", "hi-dlr", "alr", "alr-pairwise"] = "learned"
    """What sets the LR: the policy, or a method of lrenv.adaptive alone; hi-dlr has a group for
    each kind of parameter, alr-pairwise trains two layers at a time, lc multiplies the LR within
    the steps, tensor by tensor."""
    lr: float | None = None
    """LR that another method than learned starts from; None for the usual one, 1e-3, or 1e-2 of
    SGD."""
    policy: str = "default"
    """Policy, by the name of a shipped one or the path of its card."""
    rollback: bool = False
    """Come back to the last good weights where the loss explodes; keeps two copies of the model."""
    layerwise: Literal["lc"] | None = None
    """Multiply the LR of each tensor by LC's multiplier."""
    optimizer: str = "adamw"
    """Optimizer: sgd or rmsprop (momentum 0.9), adam, or adamw (weight decay 0.01)."""
    total_steps: int = 1000
    """Length of the run in optimizer steps."""
    seed: int = 0
    """Seed of weights and data order."""
    device: str | None = None
    """Device to train on, such as cpu or cuda; None for the GPU if there is one."""
    output: Path = Path("runs/finetune")
    """Where the model, the decision log and the checkpoint go; a stopped run goes on from there."""
    checkpoint_every: int | None = None
    """Optimizer steps between two checkpoints; None for a tenth of the run."""
    llm: LanguageModelSettings = LanguageModelSettings()
    """For the trainee lora-llm alone."""
