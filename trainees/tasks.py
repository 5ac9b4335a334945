"""Tasks: a data set and what is done to it, a model, an optimizer and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from lrenv.trainees.data import Dataset, load_dataset
from lrenv.trainees.encoding import instruction_dataset
from lrenv.trainees.instructions import Instructions, load_instructions
from lrenv.trainees.specs import RunSpec
from lrenv.trainees.synthetic import (
    cluster_dataset,
    photo_dataset,
    picture_dataset,
    teacher_dataset,
)
from lrenv.trainees.text import CHARACTER_TEXTS, encipher, markov_dataset
from lrenv.trainees.variants import (
    codes,
    downsample,
    halves,
    random_projection,
    renamed_behind,
    some_classes,
    standardise,
)


@dataclass(frozen=True)
class DataSpec:
    """A data set and what is done to it.

    Attributes:
        name: A key of ``DATASETS``, ``CHARACTER_TEXTS`` or ``INSTRUCTIONS``, a JSONL file of
            instructions, ``"teacher"``, ``"clusters"``, ``"pictures"``, ``"photos"``, ``"markov"``,
            or ``"renamed-"`` and a key of ``DATASETS``; to predict numbers, ``"teacher-outputs"``,
            or ``"halves"`` or ``"codes"`` of MNIST-5k.
        size: Side to which images are down-sampled, 0 leaves them; side of pictures and
            of patches of photographs.
        projection: Dimensions of a random projection; 0 for none. Inputs of a teacher or clusters.
        n_classes: Classes kept of a data set of more; classes or outputs of a teacher, clusters,
            pictures or photographs, number of codes, tokens of a Markov chain.
        n_train: Training examples kept; 0 keeps all.
        seed: Seed of kept and renamed classes, projection, codes, teacher, clusters, pictures,
            photographs, Markov chain and cipher.
        context: Tokens of a sequence of text or a Markov chain; of instructions at most.
        cipher: Share of the characters of a text that change places.
        tokenizer: The language model whose tokens instructions are made of.
        all_tokens: Whether the tokens of a prompt count in the loss.
    """

    name: str
    size: int = 0
    projection: int = 0
    n_classes: int = 10
    n_train: int = 0
    seed: int = 0
    context: int = 0
    cipher: float = 0.0
    tokenizer: str = ""
    all_tokens: bool = False


@dataclass(frozen=True)
class Task:
    """A trainee to be scheduled: data, model, optimizer and seed."""

    data: DataSpec
    spec: RunSpec
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the task as JSON values."""
        return {"data": asdict(self.data), "spec": self.spec.to_json(), "seed": self.seed}

    def key(self) -> str:
        """A hash that names the task in caches."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


_RENAMED = "renamed-"


_EXAMPLES = 5000  # of all splits together
_SYNTHETIC: dict[str, Callable[[DataSpec], Dataset]] = {
    "teacher": lambda s: teacher_dataset(s.projection, s.n_classes, _EXAMPLES, s.seed),
    "teacher-outputs": lambda s: teacher_dataset(
        s.projection, s.n_classes, _EXAMPLES, s.seed, numbers=True
    ),
    "clusters": lambda s: cluster_dataset(s.projection, s.n_classes, _EXAMPLES, s.seed),
    "pictures": lambda s: picture_dataset(s.n_classes, s.size, _EXAMPLES, s.seed),
    "photos": lambda s: photo_dataset(s.n_classes, s.size, _EXAMPLES, s.seed),
    "markov": lambda s: markov_dataset(s.n_classes, s.context, s.seed),
}


def load_data(spec: DataSpec) -> Dataset:
    """Load and transform the data set of a task."""
    return _load_data(spec, load_instructions(spec.name) if spec.tokenizer else None)


@lru_cache(maxsize=16)
def _load_data(spec: DataSpec, instructions: Instructions | None) -> Dataset:
    if spec.name in _SYNTHETIC:
        data = _SYNTHETIC[spec.name](spec)
    elif spec.name in ("halves", "codes"):
        images = load_dataset("mnist-5k")
        images = downsample(images, spec.size) if spec.size else images
        data = halves(images) if spec.name == "halves" else codes(images, spec.n_classes, spec.seed)
    elif spec.name.startswith(_RENAMED) and not spec.tokenizer:
        once = load_data(replace(spec, name=spec.name.removeprefix(_RENAMED)))
        return renamed_behind(once, spec.seed)
    elif spec.name in CHARACTER_TEXTS:
        data = CHARACTER_TEXTS[spec.name](spec.context)
        if spec.cipher:
            data = encipher(data, spec.cipher, spec.seed)
    elif instructions:
        data = instruction_dataset(instructions, spec.tokenizer, spec.context, spec.all_tokens)
    else:
        data = _of_a_loaded_set(spec)
    if spec.n_train:
        kept = {name: getattr(data, name)[: spec.n_train] for name in ("x_train", "y_train")}
        data = replace(data, **kept)
    return data


def _of_a_loaded_set(spec: DataSpec) -> Dataset:
    """Load a data set; keep some of its classes, pixels or dimensions where asked to."""
    data = load_dataset(spec.name)
    if spec.n_classes < data.n_classes:
        data = some_classes(data, spec.n_classes, spec.seed)
    if spec.size:
        data = downsample(data, spec.size)
    if spec.projection:
        return random_projection(data, spec.projection, spec.seed)
    return standardise(data)
