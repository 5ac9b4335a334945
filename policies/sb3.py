"""The Transformers as a stable-baselines3 policy, for its PPO as it stands."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from lrenv.policies.network import Head, build_trunk


class TransformerExtractor(BaseFeaturesExtractor):
    """Reads a flattened observation of the environment with the Transformer of its preset.

    Args:
        observation_space: The environment's, flat.
        preset: ``"scale-free"`` or ``"classic"``.
        n_features: Features of one token.
    """

    def __init__(self, observation_space: gym.Space[Any], preset: str, n_features: int) -> None:
        trunk = build_trunk(preset, n_features)
        super().__init__(observation_space, trunk.width)
        self.trunk = trunk
        self.n_features = n_features

    def forward(self, observations: Tensor) -> Tensor:
        """Features of the last decision: ``(b, t * f)`` to ``(b, d)``."""
        return self.trunk.last(observations.reshape(len(observations), -1, self.n_features))


def policy_kwargs(preset: str, n_features: int, action_std: float) -> dict[str, Any]:
    """Arguments for SB3's ``ActorCriticPolicy``: two Transformers, linear heads, AdamW.

    Args:
        preset: ``"scale-free"`` or ``"classic"``.
        n_features: Features of one token.
        action_std: Initial deviation of the actions.
    """
    return {
        "features_extractor_class": TransformerExtractor,
        "features_extractor_kwargs": {"preset": preset, "n_features": n_features},
        "share_features_extractor": False,
        "net_arch": [],
        "ortho_init": False,
        "log_std_init": math.log(action_std),
        "optimizer_class": torch.optim.AdamW,
    }


def extract_actor(policy: ActorCriticPolicy, preset: str) -> Head:
    """Return the actor of an SB3 policy as a network of its own."""
    assert isinstance(policy.pi_features_extractor, TransformerExtractor)
    actor = Head(preset, policy.pi_features_extractor.n_features)
    actor.trunk.load_state_dict(policy.pi_features_extractor.trunk.state_dict())
    assert isinstance(policy.action_net, nn.Linear)
    actor.head.load_state_dict(policy.action_net.state_dict())
    return actor
