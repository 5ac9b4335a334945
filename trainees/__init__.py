"""Trainees: the models whose learning rate is set, with their data, loss and optimizer.

The trainee protocol, single and batched trainees, the data sets, and the declared families of
training and test tasks.
"""

if __name__ != "lrenv.trainees":
    raise ImportError(
        f"expected this package under the name lrenv.trainees, got {__name__}: "
        "install the project (pip install -e .) and import lrenv.trainees"
    )
