"""Frozen policies on the Hugging Face Hub: ``push_to_hub(policy, "me/my-policy")``.

``lrenv.load_policy("me/my-policy")`` brings one back. Needs huggingface_hub, which comes with
transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from lrenv.errors import PolicyFileError
from lrenv.policies.frozen import FrozenPolicy, save_policy


def push_to_hub(policy: FrozenPolicy, repo_id: str, **kwargs: Any) -> str:
    """Upload a policy, with its card as the model card.

    Args:
        policy: The policy.
        repo_id: Where to, ``owner/name``; made if it is not there.
        kwargs: What ``ModelHubMixin.push_to_hub`` takes, such as ``private`` and ``token``.

    Returns:
        The address of the commit.
    """
    shared = _Shared(policy)
    shared.repo_id = repo_id
    return str(shared.push_to_hub(repo_id, **kwargs))


def download_policy(repo_id: str) -> Path:
    """Download a policy, or find it in the hub's cache; returns the path of its card.

    Args:
        repo_id: ``owner/name``, or ``owner/name@revision``, which no later upload changes.

    Raises:
        PolicyFileError: There is no such repository, or no policy in it.
    """
    try:
        files = ["*.json", "*.safetensors"]
        name, _, revision = repo_id.partition("@")
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PolicyFileError(
            f"Expected a policy card at {repo_id}.json or on the hub, got none ({reason}); check "
            "path, name and network."
        ) from None
    weights = sorted(folder.glob("*.safetensors"))
    cards = [path.with_suffix(".json") for path in weights if path.with_suffix(".json").exists()]
    if len(cards) != 1:
        raise PolicyFileError(
            f"Expected one policy in {repo_id}, a .json card beside .safetensors weights, got "
            f"{len(cards)}."
        )
    return cards[0]


class _Shared(ModelHubMixin, library_name="lrenv", tags=["learning-rate"]):
    """A policy as the hub's mixin wants it."""

    repo_id: str

    def __init__(self, policy: FrozenPolicy) -> None:
        self._policy = policy

    def _save_pretrained(self, save_directory: Path) -> None:
        save_policy(save_directory, self._policy.name, self._policy.actor, self._policy.card)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Make the model card of the policy's own."""
        card, name = self._policy.card, self._policy.name
        data = ModelCardData(library_name="lrenv", tags=["learning-rate"])
        results = json.dumps(card.get("ratio_to_tuned_expert", {}), indent=1)
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}: learning rates with nothing to tune\n\n"
            "```python\nfrom lrenv import LearnedLR\n\n"
            f'scheduler = LearnedLR(optimizer, total_steps=1000, policy="{self.repo_id}", '
            "steps_per_epoch=len(loader))\n```\n\n"
            f"Made by `{card.get('made_by', 'unknown')}`, trained on "
            f"{card.get('training_families', 'unknown tasks')}.\n\n"
            "Final validation loss over the tuned expert's, on tasks of the training family, and "
            "what training took:\n\n"
            f"```json\n{results}\n```\n"
        )
