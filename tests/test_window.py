"""The window of the last 512 optimizer steps."""

import pytest
import torch
from torch import Tensor

from lrenv.statistics import StepStats
from lrenv.window import WINDOW, Interval, StepWindow, pad_left


def stats(n_runs: int, n_layers: int, value: float) -> StepStats:
    layered, plain = torch.full((n_runs, n_layers), value), torch.full((n_runs,), value)
    return StepStats(layered, 10 * layered, layered, *[plain] * 7)


def interval(
    start: int, n: int, measured: int = 1, total: int = 2000, val: Tensor | None = None
) -> Interval:
    """Losses count the steps; run 1 has them doubled."""
    losses = torch.arange(start, start + n).float().repeat(2, 1) * torch.tensor([[1.0], [2.0]])
    lr = torch.tensor([0.1, 0.2]) * (start + 1)
    seen = [stats(2, 3, float(start + n - measured + i)) for i in range(measured)]
    return Interval(start, total, losses, lr, seen, val)


def test_interval_knows_its_end_and_what_is_left():
    part = interval(30, 10, total=160)

    assert part.end == 40
    assert part.left == 0.75


def test_interval_state_round_trip():
    part = interval(3, 5, measured=2, val=torch.tensor([1.0, 2.0]))
    again = Interval.from_state(part.to_state())

    assert (again.start, again.total_steps) == (3, 2000)
    assert torch.equal(again.losses, part.losses)
    assert torch.equal(again.stats[1].lc, part.stats[1].lc)
    assert torch.equal(again.val_loss, part.val_loss)


def test_rows_are_appended():
    window = StepWindow()
    window.extend(interval(0, 2, total=10))
    window.extend(interval(2, 3, total=10, val=torch.tensor([7.0, 8.0])))

    assert window.loss.tolist() == [[0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]
    torch.testing.assert_close(window.lr[1], torch.tensor([0.2, 0.2, 0.6, 0.6, 0.6]))
    torch.testing.assert_close(window.left, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert window.val_loss[:, :2].isnan().all()
    assert window.val_loss[:, 2:].tolist() == [[7] * 3, [8] * 3]


def test_unmeasured_steps_hold_the_first_value_measured_after_them():
    window = StepWindow()
    window.extend(interval(0, 5, measured=2))

    assert window.grad_norm.shape == (2, 5, 3)
    assert window.grad_norm[0, :, 1].tolist() == [3, 3, 3, 3, 4]
    assert window.lc[1, :, 2].tolist() == [30, 30, 30, 30, 40]


def test_the_last_512_steps_stay():
    window = StepWindow()
    for start in range(0, 1200, 100):
        window.extend(interval(start, 100))

    assert window.loss[0].tolist() == list(range(1200 - WINDOW, 1200))
    assert window.left.shape == (WINDOW,)
    assert window.left[-1].item() == pytest.approx(0.4)
    for name in ("val_loss", "lr", "grad_norm", "lc"):
        assert getattr(window, name).shape[1] == WINDOW


def test_an_interval_longer_than_the_window_fills_it():
    window = StepWindow()
    window.extend(interval(0, 700))

    assert window.loss[0].tolist() == list(range(700 - WINDOW, 700))


@pytest.mark.parametrize("lengths", [(700,), (300, 300, 300), (5,)])
def test_no_more_than_the_window_stays_in_memory(lengths):
    window = StepWindow()
    start = 0
    for n in lengths:
        window.extend(interval(start, n))
        start += n

    for name in ("loss", "val_loss", "lr", "left", "grad_norm", "lc"):
        kept = getattr(window, name)
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size(), name


def test_state_goes_on_where_it_stopped():
    whole, stopped, resumed = StepWindow(), StepWindow(), StepWindow()
    for window in (whole, stopped):
        window.extend(interval(0, 300))
    resumed.load_state_dict(stopped.state_dict())
    for window in (whole, resumed):
        window.extend(interval(300, 300))

    for name in ("loss", "val_loss", "lr", "left", "grad_norm", "lc"):
        torch.testing.assert_close(
            getattr(resumed, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True
        )


def test_padding_repeats_the_first_step():
    series = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])

    assert pad_left(series, 4).tolist() == [[[1, 2], [1, 2], [1, 2], [3, 4]]]
    assert pad_left(series).shape == (1, WINDOW, 2)
    assert pad_left(series, 1) is series
