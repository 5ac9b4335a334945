"""Policies that set a learning rate, learned and hand-designed.

The Transformer actor-critic (``network``, and ``sb3`` for stable-baselines3), the frozen policy and
its file format (``frozen``), the experts (``experts``) and LRBench's policies (``lrbench``), both
pure functions of the step.
"""

if __name__ != "lrenv.policies":
    raise ImportError(
        f"expected this package under the name lrenv.policies, got {__name__}: "
        "install the project (pip install -e .) and import lrenv.policies"
    )
