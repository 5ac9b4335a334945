"""The adaptive methods of our sources, as schedulers: LC, GeN and Hi-DLR, ALR, pairwise layers.

They act on any torch optimizer, between ``loss.backward()`` and the end of ``optimizer.step()``.
"""

from lrenv.adaptive.alr import ALRScheduler
from lrenv.adaptive.gen import GeNLR, HiDLR
from lrenv.adaptive.groups import freeze_to_budget, group_parameters
from lrenv.adaptive.lc import LCSensitivityLR
from lrenv.adaptive.pairwise import PairwiseLayers

__all__ = [
    "ALRScheduler",
    "GeNLR",
    "HiDLR",
    "LCSensitivityLR",
    "PairwiseLayers",
    "freeze_to_budget",
    "group_parameters",
]
