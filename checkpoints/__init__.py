"""Shipped policies, and nothing else.

Each is a pair of files: the weights in ``<name>.safetensors`` and the policy card in
``<name>.json``.
"""

if __name__ != "lrenv.checkpoints":
    raise ImportError(
        f"expected this package under the name lrenv.checkpoints, got {__name__}: "
        "install the project (pip install -e .) and import lrenv.checkpoints"
    )
