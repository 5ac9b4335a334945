"""``LearnedLR``: a frozen policy as a torch learning-rate scheduler."""

from __future__ import annotations

import math
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lrenv import processes
from lrenv.adaptive.lc import LCSensitivityLR
from lrenv.advice import CUT, FOREIGN, IDLE, LAST, NEGATIVE, OVERRUN, SHORT, Advice
from lrenv.controller import Controller, Decision
from lrenv.decision_log import log_entry, save_log
from lrenv.decisions import check_total_steps, trial_steps
from lrenv.errors import InputError
from lrenv.explain import explain
from lrenv.gradients import GradientReader
from lrenv.hooks import current_lrs, listen, parameters_of, set_lr
from lrenv.losses import LossReports
from lrenv.policies.frozen import DEFAULT_POLICY, FrozenPolicy, load_policy
from lrenv.rollback import Rollback
from lrenv.traits import check_unit, traits_of

_SHORTEST = 100
_IDLE = 100  # steps of the scheduler; batches that are accumulated are fewer
_HORIZON = 1000  # of a run without an end, doubled whenever half of it is over


class LearnedLR(LRScheduler):
    """Sets the learning rate of a run by a frozen policy; there is nothing to tune.

    The scheduler owns the LR. The optimizer's LR is no more than a hint, of which only the ratios
    between parameter groups count: each group's LR moves as a multiple of its ``initial_lr``, the
    first group's being the unit, times its ``lr_scale`` where it has one.

    ```python
    scheduler = LearnedLR(optimizer, total_steps=1000, steps_per_epoch=len(loader))
    for x, y in batches:
        loss = loss_function(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        scheduler.step(loss)
    ```

    Behind a warm-up, which it does not need, in torch's ``SequentialLR``, it starts anew from the
    model as it then is, with the steps that are left then as ``total_steps``; hand it the losses by
    :meth:`report`.

    In a distributed job (DDP, FSDP by ``fully_shard``) every process makes one and calls it at the
    same steps; the LR is the same in all of them.

    Args:
        optimizer: Any torch optimizer.
        total_steps: Length of the whole run in optimizer steps, which are fewer than batches under
            accumulation. Runs of less than 100 are warned of, few policies are trained on such;
            :meth:`set_total_steps` changes it. None for a run without an end: the LR stays high
            until :meth:`finish`.
        policy: Name of a shipped policy, path of a policy file, or a loaded policy.
        steps_per_epoch: Optimizer steps in a pass over the training data, such as ``len(loader)``,
            fewer under accumulation; may be a fraction. None where there are no passes, or nobody
            knows: a policy that reads it then cannot tell much data from little, which is learned
            by heart.
        rollback: The model, where a run whose loss is not finite or explodes may be taken back to
            its last good weights. Costs two copies of the trained parameters, the buffers and the
            optimizer's state; they are not saved, so that a resumed run starts without any.
        layerwise: ``"lc"`` multiplies the policy's LR, tensor by tensor, by LC's multipliers with a
            mean of 1 (:class:`lrenv.adaptive.LCSensitivityLR`); the optimizer gets one group a
            tensor, and every step reads one number of each tensor back from the device.
        last_epoch: −1, as hosts pass it to torch's schedulers; any other is refused.

    Attributes:
        decisions: The decision log: step, LR, action, the features they rest on, whether a bound
            kept the LR from what the action asks for, and what the guard did: ``guard`` is why it
            cut the LR, None if it did not.

    Raises:
        InputError: ``total_steps``, ``steps_per_epoch`` or the optimizer's LRs cannot be used.
        PolicyFileError: The policy cannot be loaded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None,
        policy: str | Path | FrozenPolicy = DEFAULT_POLICY,
        *,
        steps_per_epoch: float | None = None,
        rollback: nn.Module | None = None,
        layerwise: Literal["lc"] | None = None,
        last_epoch: int = -1,
    ) -> None:
        if last_epoch != -1:
            raise InputError(
                f"Expected last_epoch of -1, got {last_epoch}; a run goes on by load_state_dict()."
            )
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"Expected a torch optimizer, got a {type(optimizer).__name__}.")
        # accelerate's wrapper steps the optimizer within, on which the hooks must be.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        check_unit(optimizer)
        if layerwise not in (None, "lc"):
            raise InputError(f"Expected layerwise to be None or 'lc', got {layerwise!r}.")
        self.policy = policy if isinstance(policy, FrozenPolicy) else load_policy(policy)
        params = parameters_of(optimizer)
        device = params[0].device if params else torch.device("cpu")
        self._open, self._advice = total_steps is None, Advice()
        self.controller = Controller(
            _HORIZON if total_steps is None else trial_steps(total_steps),
            traits_of(optimizer),
            preset=self.policy.preset,
            device=device,
            steps_per_epoch=steps_per_epoch,
            average=processes.mean,
            total=processes.total_of(params),
        )
        self._made_for = None if self._open else self.controller.plan.total_steps
        if total_steps is not None and total_steps < _SHORTEST:
            self._advice.give(SHORT, 1, least=_SHORTEST, steps=total_steps)
        self.decisions: list[dict[str, Any]] = []
        self._reader = GradientReader(optimizer)
        self._unreported = self._skipped = False
        self._reports = LossReports(self.controller.lr)
        self._rollback = None if rollback is None else Rollback(rollback, optimizer)
        # The last to be made, as it changes the optimizer.
        self._layerwise = LCSensitivityLR(optimizer, normalize=True) if layerwise else None
        super().__init__(optimizer)
        listen(self.optimizer, self, first=True)  # ahead of LC, which multiplies what it sets

    def get_lr(self) -> list[float | Tensor]:
        """Return the LR of each parameter group."""
        lr = float(self.controller.lr)
        unit = float(self.optimizer.param_groups[0]["initial_lr"])
        return [
            lr * (float(g.get("initial_lr", unit)) / unit) * g.get("lr_scale", 1.0)
            for g in self.optimizer.param_groups
        ]

    def step(
        self, loss: Tensor | float | None = None, *, val_loss: Tensor | float | None = None
    ) -> None:
        """Report the optimizer step just taken; sets the LR of the next one.

        Args:
            loss: Training loss, a scalar of at least 0. Of several since the last optimizer step
                the mean of the finite ones counts, as under gradient accumulation; if there is
                none, the last one.
            val_loss: Validation loss, a scalar, whenever the job has computed one.
        """
        self._step_count += 1
        # accelerate calls this once a process, with one and the same loss
        again = self._reports.is_again(loss) and not self._unreported
        self.report(None if again else loss, val_loss=val_loss)
        if self._unreported:
            self._advance()
        elif self._step_count == 1:
            self.last_epoch = 0
            self._apply()
        elif self._step_count == _IDLE and self.controller.step == 0:
            self._advice.give(IDLE, 1, steps=_IDLE)

    def report(
        self, loss: Tensor | float | None = None, *, val_loss: Tensor | float | None = None
    ) -> None:
        """Report losses ahead of :meth:`step`, for hosts that call it without any.

        Args:
            loss: Training loss, a scalar, as in :meth:`step`.
            val_loss: Validation loss, a scalar.
        """
        if not self._waiting:
            self._reports.add(loss, val_loss)

    @property
    def multipliers(self) -> list[float] | None:
        """LC's multipliers of the LR at the last optimizer step, one a tensor; None without LC."""
        return list(self._layerwise.multipliers) if self._layerwise else None

    def save_decisions(self, path: str | Path) -> None:
        """Write the decision log as lines of JSON, atomically.

        ``lrenv explain`` and ``lrenv monitor`` read the file where it is ``decisions.jsonl`` in the
        folder that they are given.

        Raises:
            InputError: The file cannot be written.
        """
        save_log(Path(path), self.decisions, self.policy.card)

    def explain(self) -> list[dict[str, Any]]:
        """Attribute the decisions so far to signals, see :func:`lrenv.explain.explain`."""
        return explain(self.policy, self.decisions)

    def set_total_steps(self, total_steps: int) -> None:
        """Make the run longer or shorter; may be called at any time.

        All processes of a distributed job must call it at the same step.

        Args:
            total_steps: Its new length in optimizer steps, with those behind; steps taken past an
                earlier end do not count.

        Raises:
            InputError: The run is at or past the new end.
        """
        self.controller.replan(total_steps, in_flight=self._unreported)
        self._open = False
        self._advice.forget(OVERRUN)

    def finish(self, steps: int) -> None:
        """Bring the run to its end within further optimizer steps.

        The LR does not rise any more, once it is no longer a probe (the first 3 steps).

        Raises:
            InputError: They are no whole number, less than one, or fewer than the 4 that a whole
                run needs.
        """
        if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
            raise InputError(
                f"Expected steps to be a whole number of at least 1, got {steps!r}; name how many "
                "are left."
            )
        self.set_total_steps(self.controller.step + self._unreported + steps)
        self.controller.stop_rising()

    def state_dict(self) -> dict[str, Any]:
        """Return the state: plain values and tensors; the policy enters by name and hash."""
        return {
            "policy": self.policy.name,
            "policy_sha256": self.policy.card["sha256"],
            "controller": self.controller.state_dict(),
            "decisions": list(self.decisions),
            "measured": list(self._reader.places),
            "unreported": self._unreported,
            "open": self._open,
            "made_for": self._made_for,
            **self._reports.state_dict(),
            "step_count": self._step_count,
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "layerwise": self._layerwise and self._layerwise.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Where this scheduler was made with another number of total steps than the run had, the run
        gets that length. ``steps_per_epoch`` is as it was, unless this one was made with its own,
        which counts from the next decision on.

        Raises:
            InputError: The state belongs to another policy, or the run is past the new end.
        """
        if not isinstance(state_dict, dict) or not self.state_dict().keys() <= state_dict.keys():
            raise InputError(
                "Expected the state of a LearnedLR, got that of something else; leave it out, "
                "and the run goes on as from its start."
            )
        own, saved = self.policy.card["sha256"], state_dict["policy_sha256"]
        if saved != own:
            raise InputError(
                f"Expected the state of a run under the policy {self.policy.name!r} ({own[:8]}), "
                f"got one under {state_dict['policy']!r} ({saved[:8]}); resume with the policy the "
                "run was started with."
            )
        if (self._layerwise is None) != (state_dict["layerwise"] is None):
            raise InputError(
                "Expected the state of a run with the same layerwise, got one "
                f"{'without' if self._layerwise else 'with'} it; resume as the run was started."
            )
        new_length = None if self._made_for == state_dict["made_for"] else self._made_for
        if new_length is not None:
            taken = state_dict["controller"]["step"] + state_dict["unreported"]
            check_total_steps(new_length, taken + 1)
        self.controller.load_state_dict(state_dict["controller"])
        self._open = state_dict["open"]
        self.decisions = list(state_dict["decisions"])
        self._reader.places = list(state_dict["measured"])
        self._unreported = state_dict["unreported"]
        self._reports.load_state_dict(state_dict)
        self._step_count = state_dict["step_count"]
        self.base_lrs = list(state_dict["base_lrs"])
        if self._layerwise:
            self._layerwise.load_state_dict(state_dict["layerwise"])
        self.last_epoch = state_dict["last_epoch"]
        if self._rollback:
            self._rollback.reset()
        self._advice.forget(OVERRUN)
        if new_length is not None:
            self.set_total_steps(new_length)
        if not self._waiting:
            self._apply()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy; its optimizer is a copy too, without our hooks."""
        vars(self).update(state)
        listen(self.optimizer, self, first=True)

    def before_step(self, loss: Any = None) -> None:
        """Measure the gradients; called within ``optimizer.step()``."""
        if self._waiting:
            return
        # Torch's gradient scaler has fused optimizers do nothing where gradients overflow, within
        # their step. To read that is to wait for the device, so only where a step is measured;
        # those that overflow elsewhere count as steps.
        overflow = getattr(self.optimizer, "found_inf", None)
        self._skipped = self.controller.measuring and overflow is not None and bool(overflow)
        if self._skipped:
            return
        if self._unreported:  # two optimizer steps without a scheduler step between
            self._advance()
        if any("initial_lr" not in group for group in self.optimizer.param_groups):
            self._apply()
        if self._rollback:
            self._rollback.admit()
        if self.controller.measuring:
            self._check_lrs()
        self._reports.set_closure(loss)
        if self.controller.measuring:
            if self._reader.choose():
                self.controller.forget_layers()
            self.controller.before_update(self._reader.parameters(), self._reader.gradients())

    def after_step(self) -> None:
        """Measure the update; called within ``optimizer.step()``."""
        if self._waiting or self._skipped:
            return
        if self.controller.measuring:
            self.controller.after_update(self._reader.parameters())
        self._unreported = True

    def _check_lrs(self) -> None:
        """Tell a job whose LRs are not ours; those in tensors are not read, to wait for no GPU."""
        if len(self._last_lr) != len(self.optimizer.param_groups):  # LC splits one that was added
            return
        for group, own in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            lr = group["lr"]
            if not isinstance(lr, Tensor) and not math.isclose(lr, float(own), rel_tol=1e-5):
                self._advice.give(FOREIGN, 3, lr=float(lr), own=float(own))

    @property
    def _waiting(self) -> bool:
        """Whether torch's SequentialLR has it wait for its turn."""
        return self.last_epoch < 0

    def _advance(self) -> None:
        """Count an optimizer step; decide where an interval ends."""
        self._unreported = False
        controller = self.controller
        if controller.done:
            self._advice.give(OVERRUN, 2, steps=controller.plan.total_steps)
            self._reports.drop()
            return
        if controller.end_step(self._reports.take()):
            if self._open and 2 * controller.step >= controller.plan.total_steps:
                controller.replan(2 * controller.plan.total_steps)
            val_loss = self._reports.take_val()
            controller.close(processes.mean_where_given(val_loss, controller.lr))
            rolled_back = self._roll_back()
            if controller.deciding:
                if bool((controller.observer.window.loss < 0).any()):
                    self._advice.give(NEGATIVE, 2)
                decision = controller.act(self.policy.act(controller))
                processes.share(controller.lr)
                self._log(decision, rolled_back)
            elif controller.done and bool(controller.unfit):
                kept = "stay as they are; with rollback=model a run ends with its last good ones"
                self._advice.give(LAST, 2, outcome="come back" if rolled_back else kept)
            self._apply()
        self.last_epoch = controller.step

    def _roll_back(self) -> bool:
        """Keep the weights behind an interval, or bring good ones back; whether it did that."""
        controller = self.controller
        if self._rollback is None or not (controller.deciding or controller.done):
            return False
        return self._rollback.update(bool(controller.unfit), bool(controller.calm))

    def _log(self, decision: Decision, rolled_back: bool) -> None:
        entry = log_entry(self.controller, decision, rolled_back)
        if entry["guard"] and not rolled_back:
            self._advice.give(CUT, 3, step=decision.step, reason=entry["guard"])
        self.decisions.append(entry)

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))  # of one that was added
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            set_lr(group, float(lr))
        self._last_lr = current_lrs(self.optimizer)
