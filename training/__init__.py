"""Training and evaluation of policies, and the command line.

Tuned experts, demonstrations, behavioural cloning, PPO, evaluation and the report.
"""

if __name__ != "lrenv.training":
    raise ImportError(
        f"expected this package under the name lrenv.training, got {__name__}: "
        "install the project (pip install -e .) and import lrenv.training"
    )
