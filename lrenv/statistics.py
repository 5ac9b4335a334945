"""Statistics of an optimizer step: gradient norms, LC sensitivities, update sizes, cosines.

Every tensor has a leading dimension of runs, so that one run of a user's job (``n_runs`` = 1)
and thousands of stacked trainees go through the same functions.

Shape legend: r runs, l layers, s sampled coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import torch
from torch import Tensor

MAX_SAMPLE = 4096
"""Coordinates read from one tensor, at most about twice."""

MAX_SAMPLES = 2**18
"""Coordinates read from all tensors, at most about twice: the cost has a bound for any model."""

_TINY = 1e-30
_LEAST_RMS = 1e-3


@dataclass(frozen=True)
class StepStats:
    """What one measured optimizer step says about the run.

    Attributes:
        grad_norm: Euclidean gradient norm of each layer, ``(r, l)``.
        lc: LC sensitivity of each layer (see :func:`lc_bound`), ``(r, l)``.
        update_ratio: Relative update size |Δθ|/|θ| of each layer, ``(r, l)``.
        global_ratio: |Δθ|/|θ| over all layers, |θ| being at least a root mean square of 1e-3,
            ``(r,)``.
        momentum_cos: Cosine between the gradient and minus the last update, which for SGD is the
            optimizer's momentum; positive while the LR is too small, ``(r,)``.
        descent_cos: The same cosine for the gradient that made the last update, ``(r,)``.
        gradient_cos: Cosine between successive mini-batch gradients, ``(r,)``.
        param_norm: |θ| over all layers, ``(r,)``.
        update_norm: |Δθ| over all layers, ``(r,)``.
        distance: |θ − θ₀|, the distance from the start of the run, ``(r,)``.
    """

    grad_norm: Tensor
    lc: Tensor
    update_ratio: Tensor
    global_ratio: Tensor
    momentum_cos: Tensor
    descent_cos: Tensor
    gradient_cos: Tensor
    param_norm: Tensor
    update_norm: Tensor
    distance: Tensor


def group_layers(shapes: Sequence[torch.Size]) -> list[int]:
    """Assign tensors to layers: a matrix starts a layer, the vectors after it belong to it.

    Args:
        shapes: Shapes of the parameters of one run, without the dimension of runs.

    Returns:
        The layer index of each tensor, rising from 0.
    """
    index, layers = -1, []
    for shape in shapes:
        if len(shape) > 1 or index < 0:
            index += 1
        layers.append(index)
    return layers


def lc_nuclear(theta: Tensor, grad: Tensor) -> Tensor:
    """LC sensitivity in its cheap form: nuclear norm of (θ ⊙ g)², elementwise square.

    Args:
        theta: One parameter; vectors count as one row, convolutions as (out, −1).
        grad: Its gradient, of the same shape.

    Returns:
        The sum of the singular values, a scalar.
    """
    squares = (theta * grad).square()
    matrix = squares.reshape(squares.shape[0], -1) if squares.ndim > 1 else squares.reshape(1, -1)
    singular: Tensor = torch.linalg.svdvals(matrix)
    return singular.sum()


def lc_bound(theta: Tensor, grad: Tensor, strides: Tensor) -> Tensor:
    """Lower bound of :func:`lc_nuclear` without a singular value decomposition.

    For S = (θ ⊙ g)² of rank k, ‖S‖_F ≤ ‖S‖_* ≤ √k·‖S‖_F; this is ‖S‖_F, estimated from the
    sampled coordinates.

    Args:
        theta: Sampled coordinates of layers, ``(..., s)``.
        grad: Their gradient, ``(..., s)``.
        strides: How many coordinates each one stands for, ``(..., s)``.

    Returns:
        One value a layer, ``(...)``.
    """
    if not theta.shape[-1]:  # a layer of which another process has all
        return theta.sum(-1)
    product = theta * grad
    unit = product.abs().amax(-1, keepdim=True).clamp_min(_TINY)  # or the fourth power underflows
    fourth = product.div_(unit).square_().square_()
    return fourth.mul_(strides).sum(-1).sqrt() * unit[..., 0].square()


class StepMeter:
    """Measures optimizer steps of ``n_runs`` runs in lockstep.

    Call :meth:`before` between backward and the optimizer step and :meth:`after` behind it. Keeps
    three samples of the parameters, of at most about ``MAX_SAMPLE`` coordinates a tensor each.

    Args:
        total: Sums over processes, where each of them has a shard of the parameters.
        device: Where statistics are wanted; a model may be spread over several.
    """

    def __init__(
        self,
        total: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._total, self._device = total, device
        self._sizes: list[int] = []
        self._layers: list[int] = []
        # Samples lie by layers, those of one width together, so that one operation serves them all.
        self._order: list[int] = []
        self._blocks: list[tuple[int, int]] = []
        self._places = self._counts = torch.empty(0)
        self._in_place = True
        self._strides = torch.empty(0)
        self._least_norm = 0.0
        self._start: Tensor | None = None
        self._theta: Tensor | None = None
        # step, gradient, its norm, update, its norm
        self._last: tuple[int, Tensor, Tensor, Tensor, Tensor] | None = None
        self._norms = torch.empty(0)
        self._lc = torch.empty(0)
        self._cosines: tuple[Tensor, Tensor, Tensor] | None = None
        self._grad, self._grad_norm = torch.empty(0), torch.empty(0)
        self._step = -1

    def before(self, step: int, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Read parameters and gradients ahead of optimizer step number ``step``.

        Args:
            step: The number of the step, from 0; cosines need two steps in a row.
            params: Parameters, ``(r, ...)`` each.
            grads: Their gradients, of the same shapes.
        """
        first = self._start is None
        if first:
            self._lay_out(params)
        theta, grad = self._sample(params), self._sample(grads)
        if first:
            self._start = theta.clone()
        self._norms = self._layer_norms(grads)
        parts = zip(*map(self._by_width, (theta, grad, self._strides[None])), strict=True)
        lc = self._in_order([lc_bound(t, g, w) for t, g, w in parts])
        self._lc = self._total(lc.square()).sqrt() if self._total else lc
        self._theta, self._grad, self._step = theta, grad, step
        self._grad_norm = self._layer_squares(grad).sum(1).sqrt()
        self._cosines = self._measure_cosines()

    def after(self, params: Sequence[Tensor]) -> StepStats:
        """Read the parameters behind the optimizer step and return its statistics."""
        assert self._theta is not None
        assert self._start is not None
        assert self._cosines is not None
        now = self._sample(params)
        update = now - self._theta
        theta_sq, update_sq = self._layer_squares(self._theta), self._layer_squares(update)
        param_norm, update_norm = theta_sq.sum(1).sqrt(), update_sq.sum(1).sqrt()
        self._last = (self._step, self._grad, self._grad_norm, update, update_norm)
        size = param_norm.clamp_min(self._least_norm)
        return StepStats(
            grad_norm=self._norms,
            lc=self._lc,
            update_ratio=(update_sq / (theta_sq + _TINY)).sqrt(),
            global_ratio=update_norm / size,
            momentum_cos=self._cosines[0],
            descent_cos=self._cosines[1],
            gradient_cos=self._cosines[2],
            param_norm=param_norm,
            update_norm=update_norm,
            distance=self._layer_squares(now - self._start).sum(1).sqrt(),
        )

    def forget(self) -> None:
        """Begin anew, with other parameters or from where these are."""
        self._start = self._theta = self._last = None

    def state_dict(self) -> dict[str, object]:
        """Return the state as tensors and plain values."""
        return {k: value for k, value in vars(self).items() if k not in ("_total", "_device")}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what :meth:`state_dict` returned."""
        vars(self).update(state)

    def _lay_out(self, params: Sequence[Tensor]) -> None:
        shapes = [p.shape[1:] for p in params]
        self._layers = group_layers(shapes)
        counts = [shape.numel() for shape in shapes]
        rows = [shape[-1] if len(shape) > 1 else 1 for shape in shapes]
        most = max(1, min(MAX_SAMPLE, MAX_SAMPLES // len(shapes)))
        self._sizes = [_stride(n, row, most) for n, row in zip(counts, rows, strict=True)]
        taken = [-(-n // k) for n, k in zip(counts, self._sizes, strict=True)]
        widths = [0] * (self._layers[-1] + 1)
        for layer, n in zip(self._layers, taken, strict=True):
            widths[layer] += n
        layers = sorted(range(len(widths)), key=lambda layer: -widths[layer])
        self._order = sorted(range(len(shapes)), key=lambda k: layers.index(self._layers[k]))
        self._blocks = [(n, len(list(same))) for n, same in groupby(widths[k] for k in layers)]
        counts_of = [len(list(same)) for _, same in groupby(self._layers)]
        self._counts = torch.tensor(counts_of, device=self._device)
        places = sorted(range(len(layers)), key=layers.__getitem__)
        self._places = torch.tensor(places, device=self._device)
        self._in_place = places == list(range(len(places)))
        self._strides = torch.cat(
            [
                torch.full((taken[k],), counts[k] / max(1, taken[k]), dtype=torch.float32)
                for k in self._order
            ]
        ).to(self._device)
        # Weights that start at 0, such as LoRA's B, count as having a root mean square of 1e-3.
        size = self._sum(self._strides.sum())
        self._least_norm = _LEAST_RMS * math.sqrt(float(size))

    def _sample(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [
            tensors[k].reshape(len(tensors[k]), -1)[:, :: self._sizes[k]].to(self._device)
            for k in self._order
        ]
        return torch.cat(parts, 1).float()

    def _by_width(self, sample: Tensor) -> list[Tensor]:
        """Views of a sample ``(r, s)``: the layers of each width, ``(r, layers, width)``."""
        parts = sample.split([n * count for n, count in self._blocks], 1)
        return [p.unflatten(1, (k, n)) for p, (n, k) in zip(parts, self._blocks, strict=True)]

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the layers of each width, ``(r, layers)``, as those of all layers in order."""
        joined = torch.cat(list(parts), 1)
        return joined if self._in_place else joined.index_select(1, self._places)

    def _layer_norms(self, grads: Sequence[Tensor]) -> Tensor:
        precise = reduce(torch.promote_types, {g.dtype for g in grads}, torch.float32)
        if len(grads[0]) == 1:
            found = [norm[None] for norm in torch._foreach_norm(list(grads), 2, precise)]
        else:
            rows = [grad.reshape(len(grad), -1) for grad in grads]
            found = [torch.linalg.vector_norm(r, dim=1, dtype=precise) for r in rows]
        squares = torch.stack([norm.to(self._device) for norm in found]).float().square()
        layers = torch.segment_reduce(squares, "sum", lengths=self._counts, axis=0)
        return self._sum(layers.T).sqrt()

    def _layer_squares(self, sample: Tensor) -> Tensor:
        weighted = sample.square() * self._strides
        return self._sum(self._in_order([part.sum(2) for part in self._by_width(weighted)]))

    def _sum(self, sums: Tensor) -> Tensor:
        """Sums over all shards of what was summed over this one."""
        return self._total(sums.contiguous()) if self._total else sums

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Dot products of the rows of two samples, ``(r,)``."""
        return self._sum(torch.linalg.vecdot(a, b))

    def _measure_cosines(self) -> tuple[Tensor, Tensor, Tensor]:
        grad, norm = self._grad, self._grad_norm
        if self._last is None or self._last[0] != self._step - 1:
            nothing = torch.full_like(norm, torch.nan)
            return nothing, nothing, nothing
        _, last_grad, last_norm, update, update_norm = self._last
        descent = update * -self._strides
        return (
            self._dot(grad, descent) / (norm * update_norm + _TINY),
            self._dot(last_grad, descent) / (last_norm * update_norm + _TINY),
            self._dot(grad, last_grad * self._strides) / (norm * last_norm + _TINY),
        )


def _stride(count: int, row: int, most: int) -> int:
    """Distance of sampled coordinates, without a factor of the row length: it sees all columns."""
    stride = max(1, count // most)
    while math.gcd(stride, row) > 1:
        stride += 1
    return stride
