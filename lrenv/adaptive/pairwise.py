"""Pairwise layer training: two neighbouring layers at a time.

Source: "Layer Dance".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lrenv.errors import InputError


class PairwiseLayers:
    """Trains layers c and c + 1 of a stack alone, c moving on by one with every batch.

    Everything outside the layers, such as embedding and head, always trains. Frozen layers keep no
    gradients. What it really does: a backward pass still goes through the frozen layers above the
    pair, and down to the embedding below it, so that time is saved on the frozen layers' weight
    gradients alone, a third of their cost.

    ```python
    pairs = PairwiseLayers(model.layers)
    optimizer = torch.optim.AdamW(model.parameters())  # all of them, before the first batch
    for x, y in batches:
        loss = loss_function(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        pairs.step()
    ```

    Args:
        layers: The layers, from the bottom to the top; those without trained parameters are left
            out, and at least two must remain.

    Attributes:
        current: c.

    Raises:
        InputError: Fewer than two layers train.
    """

    def __init__(self, layers: Sequence[nn.Module] | nn.ModuleList) -> None:
        # Parameters that are frozen already, such as the base of LoRA, stay so.
        trained = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
        self._trained = [params for params in trained if params]
        n = len(self._trained)
        if n < 2:
            raise InputError(f"Expected at least two layers that train, got {n}; name more.")
        self.current = 0
        self._freeze()

    def step(self) -> None:
        """Move on to the next pair; behind the last one comes the first."""
        self.current = (self.current + 1) % (len(self._trained) - 1)
        self._freeze()

    def release(self) -> None:
        """Train all layers again."""
        for params in self._trained:
            for param in params:
                param.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"current": self.current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.current = state_dict["current"]
        self._freeze()

    def _freeze(self) -> None:
        for k, params in enumerate(self._trained):
            trains = k in (self.current, self.current + 1)
            for param in params:
                param.requires_grad_(trains)
                if not trains:
                    param.grad = None
