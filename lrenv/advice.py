"""What ``LearnedLR`` tells a job that may not do what it means to, each at most once."""

from __future__ import annotations

import warnings

SHORT = (
    "Expected a run of at least {least} optimizer steps, as most in training are, got {steps}: its "
    "LR may get too high; rollback=model is a way back."
)
IDLE = (
    "Expected optimizer.step() ahead of scheduler.step(), got {steps} steps of the scheduler and "
    "none of its optimizer; the LR stays where it is."
)
FOREIGN = (
    "Expected the LR {own:.3g} that this scheduler set, got {lr:.3g}: something else sets it too, "
    "such as another scheduler or a line of the loop. Take that out."
)
OVERRUN = (
    "Expected {steps} optimizer steps, got more; the LR stays where it is. Pass the length of the "
    "whole run as total_steps, or change it by set_total_steps()."
)
NEGATIVE = (
    "Expected training losses of at least 0, got one below: the policy reads ratios of losses, and "
    "takes those below 0 for tiny ones. Report the loss plus a constant."
)
CUT = (
    "At step {step} {reason}, and the LR was cut; the weights stay as they are. With "
    "rollback=model a run comes back to its last good ones."
)

LAST = "In the last interval the loss was not finite or exploded: the weights {outcome}."


class Advice:
    """Gives each piece of advice once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, text: str, depth: int, **values: object) -> None:
        """Warn of a text, as coming from ``depth`` calls above the caller."""
        if text not in self._given:
            self._given.add(text)
            warnings.warn(text.format(**values), stacklevel=depth + 2)

    def forget(self, text: str) -> None:
        """Give a text anew when it is due again."""
        self._given.discard(text)
