"""Policies that set a learning rate, learned and hand-designed.

The Transformer actor-critic, the frozen policy and its file format, the expert schedules (pure
functions of the step) and the adaptive schedulers.
"""

if __name__ != "lrenv.policies":
    raise ImportError(
        f"expected this package under the name lrenv.policies, got {__name__}: "
        "install the project (pip install -e .) and import lrenv.policies"
    )
