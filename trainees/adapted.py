"""Small decoders that are pretrained on text and fine-tuned on another, whole or by LoRA.

Shape legend: r runs, i inputs of a matrix, o its outputs, k rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrenv.errors import InputError
from lrenv.files import cache_folder, write_atomic
from lrenv.policies.experts import cosine
from lrenv.trainees.data import Dataset
from lrenv.trainees.decoder import Decoder, DecoderSpec, StackedDecoder
from lrenv.trainees.single import SingleTrainee
from lrenv.trainees.text import python_docs

_BATCH_SIZE, _STEPS, _PEAK = 32, 1500, 3e-3
_TARGETS = ("self_attn.in_proj_weight", "linear1.weight", "linear2.weight")


@dataclass(frozen=True)
class AdaptedDecoderSpec(DecoderSpec):
    """A run that fine-tunes a decoder pretrained on characters of the Python reference.

    Attributes:
        rank: Rank of LoRA on the matrices of the layers; 0 trains the whole decoder.
        alpha: LoRA's update is scaled by ``alpha / rank``.
    """

    kind: ClassVar[str] = "adapted-decoder"
    keeps_weights: ClassVar[bool] = True
    rank: int = 4
    alpha: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise InputError(f"Expected a rank of at least 0, got {self.rank}.")

    def build(self, dataset: Dataset) -> Decoder:
        """Make the decoder, pretrained, with LoRA beside its matrices."""
        model = super().build(dataset)
        model.load_state_dict(pretrained(self, dataset.n_features))
        if self.rank:
            model.requires_grad_(False)
            for layer in model.layers:
                for target in _TARGETS:
                    path, _, name = target.rpartition(".")
                    owner = layer.get_submodule(path)
                    shape = getattr(owner, name).shape
                    update = LowRankUpdate(shape, self.rank, self.alpha)
                    parametrize.register_parametrization(owner, name, update)
        return model

    def stack(
        self, models: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> StackedDecoder:
        """Stack models that :meth:`build` made."""
        if not self.rank:
            return super().stack(models, dtype, device)
        return StackedAdaptedDecoder(self, models, dtype, device)


class LowRankUpdate(nn.Module):
    """LoRA (Hu et al. 2022, equation 3): W + (α/k)·B·A, with B at 0 to start with.

    Args:
        shape: Shape of W, ``(o, i)``.
        rank: k.
        alpha: α.
    """

    def __init__(self, shape: Sequence[int], rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, shape[1]))
        self.b = nn.Parameter(torch.zeros(shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Add the update to a weight."""
        return weight + self.scale * self.b @ self.a


class StackedAdaptedDecoder(StackedDecoder):
    """Decoders with LoRA in stacked tensors over one frozen base.

    Args:
        spec: The shape.
        models: The models.
        dtype: Precision of the parameters.
        device: Where the parameters live.
    """

    def __init__(
        self,
        spec: AdaptedDecoderSpec,
        models: Sequence[nn.Module],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(spec, models, dtype, device)
        self._scale = spec.alpha / spec.rank
        self._base = {
            name.replace("parametrizations.", "").replace(".original", ""): p.to(device, dtype)
            for name, p in models[0].named_parameters()
            if not p.requires_grad
        }

    def logits(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Predict, see :class:`StackedModel`."""
        n_runs = len(self.params[0])
        whole = {name: p.expand(n_runs, *p.shape) for name, p in self._base.items()}
        for name, b in params.items():
            if name.endswith(".b"):
                update = torch.bmm(b, params[f"{name[:-1]}a"])
                target = name.replace("parametrizations.", "").removesuffix(".0.b")
                whole[target] = self._base[target] + self._scale * update
        return super().logits(whole, x, training)


def pretrained(spec: DecoderSpec, context: int) -> dict[str, Tensor]:
    """Weights of a decoder after pretraining on the Python reference, from the cache or made now.

    Args:
        spec: Width, layers and heads of the decoder.
        context: Tokens of a sequence.
    """
    data = python_docs(context)
    name = f"{data.name}-{spec.width}-{spec.layers}-{spec.heads}-{context}.safetensors"
    path: Path = cache_folder() / "models" / name
    if not path.exists():
        weights = _pretrain(spec, data)
        write_atomic(path, lambda p: save_file(weights, p))
    return load_file(path)


def _pretrain(spec: DecoderSpec, data: Dataset) -> dict[str, Tensor]:
    shape = DecoderSpec(
        spec.width,
        spec.layers,
        spec.heads,
        batch_size=_BATCH_SIZE,
        total_steps=_STEPS,
    )
    trainee = SingleTrainee(shape, data, seed=0)
    for step in range(_STEPS):
        trainee.backward()
        trainee.update(torch.tensor([cosine(step, _STEPS, _PEAK)]))
    return {k: v.contiguous() for k, v in trainee.model.state_dict().items()}
