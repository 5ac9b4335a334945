"""Frozen policies and their file format: safetensors weights and a JSON card."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrenv.classic_observation import ClassicObserver
from lrenv.controller import PRESETS, Controller, Preset
from lrenv.errors import InputError, PolicyFileError
from lrenv.files import write_atomic
from lrenv.observation import FEATURES, ScaleFreeObserver
from lrenv.policies.network import Head, state_on_cpu

FORMAT_VERSION = 1
DEFAULT_POLICY = "default"

_SUFFIXES = (".json", ".safetensors")
_HUB_ID = r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?"


def feature_list(preset: str, actor: Head) -> list[str]:
    """Names of the features that an actor of a preset reads."""
    if preset == "scale-free":
        return [FEATURES[i] for i in actor.columns.tolist()]
    return _classic_features(actor.n_features)


def build_actor(features: Sequence[str] = FEATURES) -> Head:
    """Make an actor of the scale-free preset that reads some features, in the order of all.

    Raises:
        InputError: The mark of a token, ``valid``, is not among them.
    """
    if "valid" not in features:
        raise InputError("Expected the feature valid among those that a policy reads, got none.")
    columns = [FEATURES.index(name) for name in features]
    return Head("scale-free", len(FEATURES), columns)


def _classic_features(n_features: int) -> list[str]:
    norms = [f"grad_norm_{i}" for i in range(n_features - 4)]
    return ["left", "train_loss", "val_loss", *norms, "log10_lr"]


class FrozenPolicy:
    """A trained actor for inference: from a controller's observation to an action.

    Args:
        actor: The actor network.
        card: The policy card.
    """

    def __init__(self, actor: Head, card: Mapping[str, Any]) -> None:
        self.actor = actor.eval().requires_grad_(False)
        self.card = dict(card)

    @property
    def name(self) -> str:
        """The name of the policy."""
        return str(self.card["name"])

    @property
    def preset(self) -> Preset:
        """The preset of observation and action."""
        preset: Preset = self.card["preset"]
        return preset

    @torch.no_grad()
    def act(self, controller: Controller) -> Tensor:
        """Return the actions ``(r,)`` for the decision a controller waits for.

        Decisions the policy has not seen yet, for example after a resume, are read first.

        Raises:
            PolicyFileError: The run has another number of layers than the policy was made for.
        """
        with torch.autocast(self._device.type, enabled=False):  # of the job
            return self._act(controller)

    def _act(self, controller: Controller) -> Tensor:
        observer = controller.observer
        if isinstance(observer, ClassicObserver):
            window = observer.padded()
            if window.shape[2] != len(self.card["features"]):
                raise PolicyFileError(
                    f"Expected a trainee of {len(self.card['features']) - 4} layers for the policy "
                    f"{self.name!r}, got {window.shape[2] - 4}; classic policies serve one "
                    f"architecture, use {DEFAULT_POLICY!r}."
                )
            return self.actor.last(window.to(self._device))
        return self._act_causal(observer, controller.memory)

    def _act_causal(self, observer: ScaleFreeObserver, memory: dict[str, Any]) -> Tensor:
        cache: list[list[Tensor]] = memory.setdefault("cache", [])
        seen = cache[0][0].shape[2] if cache else 0
        for token in observer.tokens[seen:]:
            memory["action"] = self.actor.step(token.to(self._device), cache)
        action: Tensor = memory["action"]
        return action

    @property
    def _device(self) -> torch.device:
        return next(self.actor.parameters()).device


def save_policy(folder: Path, name: str, actor: Head, card: Mapping[str, Any]) -> Path:
    """Write ``<name>.safetensors`` and ``<name>.json``, each atomically.

    Args:
        folder: Where to.
        name: The name of the policy.
        actor: The actor network.
        card: What is to stand in the card beside format, features and hash; needs ``preset``.

    Returns:
        The path of the card.
    """
    weights, path = folder / f"{name}.safetensors", folder / f"{name}.json"
    write_atomic(weights, lambda p: save_file(state_on_cpu(actor), p))
    full = {
        **card,
        "format": FORMAT_VERSION,
        "name": name,
        "features": feature_list(card["preset"], actor),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    write_atomic(path, lambda p: p.write_text(json.dumps(full, indent=1) + "\n"))
    return path


def shipped_policies() -> list[str]:
    """Names of the policies in the package."""
    files = resources.files("lrenv.checkpoints").iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".json"))


def load_policy(name_or_path: str | Path = DEFAULT_POLICY) -> FrozenPolicy:
    """Load a policy by name, by the path of its card or weights, or by its id on the hub.

    Raises:
        PolicyFileError: There is none, or it is damaged, altered, of another format, or made for
            another list of features.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise PolicyFileError(
            f"Expected a policy's name or path, got {name_or_path!r}; leave it out for the default."
        )
    card_path = _find(name_or_path)
    try:
        card = json.loads(card_path.read_text())
    except (OSError, ValueError) as error:
        raise PolicyFileError(f"Expected a policy card at {card_path}, got: {error}.") from None
    _check_card(card, card_path)
    weights = card_path.with_suffix(".safetensors")
    try:
        blob = weights.read_bytes()
    except OSError as error:
        raise PolicyFileError(
            f"Expected the weights of {card_path.stem!r} at {weights}, got: {error.strerror}; keep "
            "both files together."
        ) from None
    if hashlib.sha256(blob).hexdigest() != card["sha256"]:
        raise PolicyFileError(
            f"Expected {weights} to have the hash in its card, got another: the file is truncated "
            "or altered; copy it again."
        )
    classic = card["preset"] == "classic"
    features = card["features"]
    with _float32_by_default():
        actor = Head("classic", len(features)) if classic else build_actor(features)
    try:
        actor.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise PolicyFileError(
            f"Expected weights that fit the card {card_path}, got: {reason}."
        ) from None
    return FrozenPolicy(actor, card)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def find_card(name_or_path: str | Path) -> Path | None:
    """The card of a policy that is a file; None for a shipped one, or where there is none."""
    path = Path(name_or_path)
    if path.suffix not in _SUFFIXES and len(path.parts) < 2:
        return None
    card = _card_beside(path)
    return card if card.exists() else None


def _card_beside(path: Path) -> Path:
    return path.with_name(re.sub(r"\.(json|safetensors)$", "", path.name) + ".json")


def _find(name_or_path: str | Path) -> Path:
    card = find_card(name_or_path)
    if card:
        return card
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        if path.suffix not in _SUFFIXES and re.fullmatch(_HUB_ID, str(name_or_path)):
            return _find_on_hub(str(name_or_path))
        raise PolicyFileError(
            f"Expected a policy card at {_card_beside(path)}, got nothing; check the path."
        )
    names = shipped_policies()
    if str(name_or_path) not in names:
        close = get_close_matches(str(name_or_path), names, 1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise PolicyFileError(
            f"Expected a policy among {', '.join(names)} or a path, got {str(name_or_path)!r}{hint}"
        )
    return Path(str(resources.files("lrenv.checkpoints") / f"{name_or_path}.json"))


def _find_on_hub(repo_id: str) -> Path:
    try:
        from lrenv.hub import download_policy
    except ImportError as error:
        raise PolicyFileError(
            f"Expected a policy card at {repo_id}, got nothing; as an id of the hub it needs "
            f"huggingface_hub ({error})."
        ) from None
    return download_policy(repo_id)


def _check_card(card: Any, path: Path) -> None:
    if not isinstance(card, dict) or card.get("format") != FORMAT_VERSION:
        got = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise PolicyFileError(
            f"Expected format {FORMAT_VERSION} in {path}, got {got!r}; use a policy made by this "
            "version of lrenv."
        )
    for key in ("name", "preset", "features", "sha256"):
        if key not in card:
            raise PolicyFileError(f"Expected the key {key!r} in {path}, got none; copy it again.")
    if card["preset"] not in PRESETS:
        raise PolicyFileError(f"Expected preset among {PRESETS} in {path}, got {card['preset']!r}.")
    features = card["features"]
    if not isinstance(features, list) or not _known(features, card["preset"]):
        raise PolicyFileError(
            f"Expected the features of this version in {path}, got another list; use a policy made "
            "by this version of lrenv."
        )


def _known(features: list[Any], preset: str) -> bool:
    """Whether features are some of this version's, in order, the mark of a token among them."""
    if preset == "classic":
        return features == _classic_features(len(features))
    return features == [name for name in FEATURES if name in features] and "valid" in features
