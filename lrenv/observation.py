"""Observations: what a policy sees of a run, computed from its intervals.

Shape legend: r runs, t decisions so far, f features, l layers, n optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrenv.decisions import MAX_DECISIONS
from lrenv.statistics import StepStats
from lrenv.traits import OptimizerTraits
from lrenv.window import WINDOW, Interval, StepWindow, pad_left

CLIP = 5.0
"""Bound of most scale-free features."""

_TINY = 1e-12
_LAYERWISE = {"grad_norm": 3.0, "lc": 6.0}  # and what their log ratios are divided by
_LOSS_PATCHES = 8
_LAYER_PATCHES = 4

FEATURES: tuple[str, ...] = (
    "valid",
    "left",
    "log_left",
    "interval_share",
    "optimizer_known",
    "optimizer_adaptive",
    "optimizer_momentum",
    "loss",
    "loss_change",
    "loss_over_best",
    "loss_slope",
    "loss_spread",
    "val_given",
    "val_loss",
    "val_over_best",
    "lr",
    "lr_change",
    "grad_norm_min",
    "grad_norm_median",
    "grad_norm_max",
    "lc_min",
    "lc_median",
    "lc_max",
    "update_ratio_min",
    "update_ratio_median",
    "update_ratio_max",
    "update_ratio_global",
    "momentum_cos",
    "descent_cos",
    "gradient_cos",
    "weight_growth",
    "distance",
    "straightness",
    *(f"window_loss_{i}" for i in range(_LOSS_PATCHES)),
    *(f"window_grad_norm_{i}" for i in range(_LAYER_PATCHES)),
    *(f"window_lc_{i}" for i in range(_LAYER_PATCHES)),
    "dog",
    "epochs_known",
    "epochs",
    "epoch",
)
"""Features of one decision, in order; none depends on the units and sizes of the job. New ones come
last: a policy reads those that its card names."""

BOUNDS: tuple[float, ...] = tuple(10.0 if f in ("epochs", "epoch") else CLIP for f in FEATURES)
"""Bound of each feature; passes over the data may be thousands."""

_LEFT, _LOG_LEFT, _SHARE, _EPOCHS_KNOWN, _EPOCHS = map(
    FEATURES.index, ("left", "log_left", "interval_share", "epochs_known", "epochs")
)


def columns_of(*starts: str) -> list[int]:
    """Places in ``FEATURES`` of those whose names begin with one of some strings."""
    return [i for i, name in enumerate(FEATURES) if name.startswith(starts)]


class ScaleFreeObserver:
    """Builds the scale-free observation: one token of features a decision, ``(r, t, f)``.

    Losses, gradient norms and LC sensitivities enter as log ratios to the start of the run,
    layer-wise quantities as quantiles over layers, the window as patches.

    Args:
        traits: What is known of the optimizer.
        steps_per_epoch: Optimizer steps in a pass over the training data, where that is known.
    """

    def __init__(self, traits: OptimizerTraits, steps_per_epoch: float | None = None) -> None:
        self.window = StepWindow()
        self.tokens: list[Tensor] = []
        self._traits, self._per_epoch = traits, steps_per_epoch
        self._early: list[Interval] = []
        self._memo: dict[str, Tensor] = {}

    def update(self, interval: Interval, start_lr: Tensor | None) -> None:
        """Take in an interval.

        Args:
            interval: What the run did since the last decision.
            start_lr: The LR that later ones are related to, ``(r,)``; None while it is not known,
                which makes no token.
        """
        self.window.extend(interval)
        self._early.append(interval)
        if start_lr is None:
            return
        if "loss" not in self._memo:
            self._set_references(self._early, start_lr)
        self._refer([s for early in self._early for s in early.stats])
        self._early = []
        rows = {
            **self._progress(interval),
            **self._epochs(interval),
            **self._losses(interval),
            **self._validation(interval),
            **self._lr(interval),
            **self._layers(interval.stats),
            **self._geometry(interval),
            **self._patches(interval.losses.shape[1]),
        }
        like = self._memo["loss"]
        columns = [torch.as_tensor(rows[name]).to(like).expand_as(like) for name in FEATURES]
        bounds = like.new_tensor(BOUNDS)
        token = torch.nan_to_num(torch.stack(columns, 1), 0.0, torch.inf, -torch.inf)
        self.tokens.append(token.clamp(-bounds, bounds))

    def forget_layers(self) -> None:
        """Relate what is measured of layers to what comes next, as others train from now on."""
        for name in (*_LAYERWISE, "param_norm", "path", "squares"):
            self._memo.pop(name, None)
        self._early = [replace(interval, stats=[]) for interval in self._early]

    def padded(self) -> Tensor:
        """Return the observation padded with zeros behind, ``(r, MAX_DECISIONS, f)``."""
        # A token behind the last decision of a run of full length has no place, and no use.
        tokens = torch.stack(self.tokens[:MAX_DECISIONS], 1)
        out = tokens.new_zeros(tokens.shape[0], MAX_DECISIONS, len(FEATURES))
        out[:, : tokens.shape[1]] = tokens
        return out

    def rescale(self, old_steps: int, new_steps: int, room: int) -> None:
        """Make the tokens about those of a run of another length.

        Args:
            old_steps: Length of the run so far.
            new_steps: Its new length.
            room: Tokens that are kept at most, evenly chosen; the last one always.
        """
        n = len(self.tokens)
        kept = max(1, min(n, room))
        places = [round((k + 1) * n / kept) - 1 for k in range(kept)] if n else []
        ratio = old_steps / new_steps
        self.tokens = [self.tokens[place].clone() for place in places]
        for token in self.tokens:
            left = 1 - (1 - token[:, _LEFT] / 2 - 0.5) * ratio
            token[:, _LEFT] = 2 * left - 1
            token[:, _LOG_LEFT] = 1 + torch.log10(left.clamp_min(1e-3))
            if self._per_epoch is not None:
                epochs, most = math.log(new_steps / self._per_epoch), BOUNDS[_EPOCHS]
                token[:, _EPOCHS] = token[:, _EPOCHS_KNOWN] * max(-most, min(epochs, most))
            token[:, _SHARE] = (token[:, _SHARE] * ratio * n / kept).clamp_max(CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "memo": dict(self._memo),
            "tokens": list(self.tokens),
            "early": [interval.to_state() for interval in self._early],
            "window": self.window.state_dict(),
            "steps_per_epoch": self._per_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, ``steps_per_epoch`` unless it has its own."""
        self._memo = dict(state["memo"])
        # States that are older than the last features lack their columns.
        self.tokens = [F.pad(t, (0, len(FEATURES) - t.shape[1])) for t in state["tokens"]]
        if self._per_epoch is None:
            self._per_epoch = state.get("steps_per_epoch")
        self._early = [Interval.from_state(interval) for interval in state["early"]]
        self.window.load_state_dict(state["window"])

    def _remember(self, name: str, value: Tensor) -> Tensor:
        """Store ``value`` under ``name`` and return what stood there, or the value at first."""
        last = self._memo.get(name, value)
        self._memo[name] = value
        return last

    def _set_references(self, intervals: Sequence[Interval], start_lr: Tensor) -> None:
        losses = torch.cat([interval.losses for interval in intervals], 1)
        self._memo["loss"] = finite_mean(losses).clamp_min(_TINY)
        self._memo["start_lr"] = start_lr

    def _refer(self, stats: Sequence[StepStats]) -> None:
        """Set what measured steps are related to, where there is nothing finite yet."""
        start = stats[0].param_norm
        self._memo.setdefault("param_norm", start)
        for name in ("path", "squares"):
            self._memo.setdefault(name, torch.zeros_like(start))
        for name in _LAYERWISE:
            first = finite_mean(torch.stack([getattr(s, name) for s in stats], -1))
            floor = 1e-3 * first.amax(1, keepdim=True).clamp_min(_TINY)
            known = self._memo.get(name, torch.full_like(first, torch.nan))
            self._memo[name] = torch.where(known.isnan(), torch.maximum(first, floor), known)

    def _progress(self, interval: Interval) -> dict[str, Tensor | float]:
        traits = self._traits
        return {
            "valid": 1.0,
            "left": 2.0 * interval.left - 1.0,
            "log_left": 1.0 + math.log10(max(interval.left, 1e-3)),
            "interval_share": 20.0 * interval.losses.shape[1] / interval.total_steps,
            "optimizer_known": traits.known,
            "optimizer_adaptive": traits.adaptive * traits.known,
            "optimizer_momentum": -torch.log10((1 - traits.momentum).clamp_min(1e-4)),
        }

    def _epochs(self, interval: Interval) -> dict[str, float]:
        """Passes over the training data: log of those of the whole run, and those behind."""
        if self._per_epoch is None:
            return {"epochs_known": 0.0, "epochs": 0.0, "epoch": 0.0}
        return {
            "epochs_known": 1.0,
            "epochs": math.log(interval.total_steps / self._per_epoch),
            "epoch": math.log1p(interval.end / self._per_epoch),
        }

    def _losses(self, interval: Interval) -> dict[str, Tensor]:
        losses = interval.losses.clamp_min(_TINY)
        mean, first = finite_mean(losses), self._memo["loss"]
        self._memo["loss"] = first = torch.where(first.isnan(), mean, first)
        level = torch.log(mean / first)
        level = level.nan_to_num(nan=2 * CLIP)  # without a finite loss: as bad as can be shown
        best = torch.fmin(self._memo.get("best", level), level)
        self._memo["best"] = best
        slope, spread = torch.zeros_like(level), torch.zeros_like(level)
        half = losses.shape[1] // 2
        if half:
            slope = torch.log(finite_mean(losses[:, half:]) / finite_mean(losses[:, :half]))
            spread = torch.log(losses).std(1)
        return {
            "loss": level / 2,
            "loss_change": 5 * (level - self._remember("level", level)),
            "loss_over_best": 2 * (level - best),
            "loss_slope": 5 * slope,
            "loss_spread": 2 * spread,
        }

    def _validation(self, interval: Interval) -> dict[str, Tensor | float]:
        if interval.val_loss is None:
            return {"val_given": 0.0, "val_loss": 0.0, "val_over_best": 0.0}
        value = interval.val_loss.clamp_min(_TINY)
        first = self._memo.get("first_val", value)
        self._memo["first_val"] = first = torch.where(first.isfinite(), first, value)
        level = torch.log(value / first)
        best = torch.fmin(self._memo.get("best_val", level), level)
        self._memo["best_val"] = best
        given = (~level.isnan()).to(level)
        return {"val_given": given, "val_loss": level / 2, "val_over_best": 5 * (level - best)}

    def _lr(self, interval: Interval) -> dict[str, Tensor]:
        level = torch.log(interval.lr / self._memo["start_lr"])
        return {"lr": level / 4, "lr_change": level - self._remember("lr_level", level)}

    def _layers(self, stats: Sequence[StepStats]) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for name, scale in _LAYERWISE.items():
            values = torch.stack([getattr(s, name) for s in stats], -1)
            ratio = torch.log(values.clamp_min(_TINY**2)).mean(-1) - torch.log(self._memo[name])
            rows |= _quantiles(name, ratio / scale)
        ratios = torch.stack([s.update_ratio for s in stats], -1).clamp_min(_TINY)
        rows |= _quantiles("update_ratio", (torch.log10(ratios).mean(-1) + 3) / 2)
        globals_ = torch.stack([s.global_ratio for s in stats], -1).clamp_min(_TINY)
        rows["update_ratio_global"] = (torch.log10(globals_).mean(-1) + 3) / 2
        return rows

    def _geometry(self, interval: Interval) -> dict[str, Tensor]:
        stats, rows = interval.stats, {}
        for name in ("momentum_cos", "descent_cos", "gradient_cos"):
            cosine = torch.stack([getattr(s, name) for s in stats], -1).nanmean(-1)
            rows[name] = cosine.sign() * cosine.abs().sqrt()
        start = self._memo["param_norm"] + _TINY
        moved = torch.stack([s.update_norm for s in stats], -1).mean(-1).nan_to_num(0.0, 0.0)
        self._memo["path"] = self._memo["path"] + moved * interval.losses.shape[1]
        rows["weight_growth"] = 2 * torch.log(stats[-1].param_norm / start)
        rows["distance"] = (torch.log10(stats[-1].distance / start + 1e-6) + 1) / 2
        share = stats[-1].distance / (self._memo["path"] + _TINY)
        rows["straightness"] = torch.log10(share + 1e-4) + 1
        # DoG (Ivgi et al. 2023) sets the LR to the distance over the root of the summed squares of
        # gradients, here of the updates at an LR of 1.
        unit = moved / interval.lr
        self._memo["squares"] = self._memo["squares"] + unit.square() * interval.losses.shape[1]
        dog = stats[-1].distance / (self._memo["squares"].sqrt() * interval.lr + _TINY)
        rows["dog"] = torch.log10(dog + 1e-4)
        return rows

    def _patches(self, n_steps: int) -> dict[str, Tensor]:
        loss = torch.log(pad_left(self.window.loss.clamp_min(_TINY)))
        now = torch.log(self._memo["loss"]) + self._memo["level"]
        rows = _patch_means("window_loss", loss - now[:, None], _LOSS_PATCHES)
        for name, scale in _LAYERWISE.items():
            medians = self._medians(name, n_steps) / scale
            rows |= _patch_means(f"window_{name}", pad_left(medians), _LAYER_PATCHES)
        return rows

    def _medians(self, name: str, n_steps: int) -> Tensor:
        """Medians over layers of the log ratios to the start at the steps of the window."""
        known = self._memo.get(f"{name}_medians")
        values = getattr(self.window, name)
        values = (values if known is None else values[:, -n_steps:]).clamp_min(_TINY**2)
        ratio = torch.log(values) - torch.log(self._memo[name])[:, None]
        medians = _median(ratio)
        if known is not None:
            medians = torch.cat([known, medians], 1)[:, -WINDOW:]
        self._memo[f"{name}_medians"] = medians
        return medians


def finite_mean(values: Tensor) -> Tensor:
    """Mean over the last dimension of the finite values."""
    return torch.where(values.isfinite(), values, torch.nan).nanmean(-1)


def _median(values: Tensor) -> Tensor:
    """Lower median over the last dimension; torch's own is not deterministic on GPUs."""
    return values.sort(-1).values[..., (values.shape[-1] - 1) // 2]


def _quantiles(name: str, values: Tensor) -> dict[str, Tensor]:
    """Minimum, median and maximum over layers of ``(r, l)``."""
    return {
        f"{name}_min": values.amin(1),
        f"{name}_median": _median(values),
        f"{name}_max": values.amax(1),
    }


def _patch_means(name: str, series: Tensor, patches: int) -> dict[str, Tensor]:
    """Means over equal patches of a padded window ``(r, 512)``."""
    means = series.reshape(series.shape[0], patches, WINDOW // patches).mean(-1)
    return {f"{name}_{i}": means[:, i] for i in range(patches)}
