"""Data sets: their splits, and where their files come from."""

import gzip
import hashlib
import http.server
import threading
import time
import urllib.error
import urllib.request
from functools import partial

import numpy as np
import pytest
import torch

from lrenv.errors import InputError, ResourceError
from lrenv.trainees import data, idx
from lrenv.trainees.data import Dataset, data_root, load_dataset


def idx_files(n_train: int, n_test: int) -> dict[str, bytes]:
    """Four tiny IDX files of 2×2 images; image i has pixels of value i and label i mod 3."""
    files = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = np.repeat(np.arange(n, dtype=np.uint8), 4)
        labels = (np.arange(n) % 3).astype(np.uint8)
        images_head, labels_head = np.array([0x803, n, 2, 2], ">i4"), np.array([0x801, n], ">i4")
        files[f"{part}-images-idx3-ubyte"] = images_head.tobytes() + images.tobytes()
        files[f"{part}-labels-idx1-ubyte"] = labels_head.tobytes() + labels.tobytes()
    return files


def splits(dataset: Dataset) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (dataset.x_train, dataset.y_train),
        (dataset.x_val, dataset.y_val),
        (dataset.x_test, dataset.y_test),
    ]


def sorted_rows(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T)]


@pytest.fixture
def offline(monkeypatch):
    """Cut the network, forget what was loaded, and list the addresses asked for."""
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {})
    data._load.cache_clear()
    idx.fetch.cache_clear()
    yield asked
    data._load.cache_clear()
    idx.fetch.cache_clear()


def test_mnist_5k_splits_are_stratified():
    dataset = load_dataset("mnist-5k")

    assert dataset.name == "MNIST-5k"
    assert dataset.image_shape == (1, 28, 28)
    for (x, y), per_class in zip(splits(dataset), (300, 100, 100), strict=True):
        assert x.shape == (10 * per_class, 784)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert y.bincount().tolist() == [per_class] * 10
        assert (x.min(), x.max()) == (0, 1)


def test_digits_splits_hold_each_row_once():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    joined = torch.cat([torch.cat([x * 16, y[:, None]], dim=1) for x, y in splits(dataset)])
    pixels, labels = load_digits(return_X_y=True)

    expected = sorted_rows(np.column_stack([pixels, labels]))
    np.testing.assert_array_equal(sorted_rows(joined.numpy()), expected)
    shares = dataset.y_val.bincount() / joined[:, -1].long().bincount()
    assert shares == pytest.approx([0.2] * 10, abs=0.5 / 174)


def test_rows_of_a_split_are_in_random_order():
    labels = load_dataset("mnist-5k").y_train

    assert labels[:300].bincount(minlength=10).min() > 10


def test_load_is_cached_by_name_and_folder(tmp_path):
    assert load_dataset("digits", tmp_path) is load_dataset("digits", tmp_path)


def test_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LRENV_DATA", str(tmp_path))
    assert data_root() == tmp_path

    monkeypatch.delenv("LRENV_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / ".cache/lrenv/data"


def test_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"expected a data set among mnist, .*, got 'minst'"):
        load_dataset("minst")


def test_mnist_falls_back_offline_and_asks_once(offline, tmp_path, caplog):
    dataset = load_dataset("mnist", tmp_path)
    n_asked = len(offline)
    data._load.cache_clear()
    load_dataset("mnist", tmp_path)

    assert dataset.name == "MNIST-5k"
    assert len(dataset.y_train) == 3000
    assert "could not download the full set" in dataset.note
    assert "using the 5,000 images" in caplog.text
    assert n_asked == len(offline) == 2
    assert not list(tmp_path.rglob(".incoming-*"))


def test_a_silent_network_is_given_up(offline, monkeypatch):
    released = threading.Event()

    def hang(request, timeout):
        released.wait(5)
        raise urllib.error.URLError("timed out")

    monkeypatch.setattr(idx, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(urllib.request, "urlopen", hang)
    start = time.monotonic()

    assert not idx._any_answers(["http://first.invalid", "http://second.invalid"])
    assert time.monotonic() - start < 1
    released.set()


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """Serve tiny files on this machine in place of torchvision's mirrors; give their folder."""
    from torchvision.datasets import MNIST

    served = tmp_path / "served"
    served.mkdir()
    sums = []
    for name, content in idx_files(12, 3).items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        sums.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(MNIST, "resources", sums)
        yield served
        server.shutdown()


def test_mnist_is_downloaded(mirror, tmp_path):
    root = tmp_path / "root"

    assert load_dataset("mnist", root).name == "MNIST"
    assert sorted(path.name for path in idx.folder("MNIST", root).iterdir()) == sorted(idx.FILES)


def test_download_that_breaks_off_leaves_nothing(mirror, tmp_path, caplog):
    (mirror / "t10k-labels-idx1-ubyte.gz").unlink()

    assert load_dataset("mnist", tmp_path / "root").name == "MNIST-5k"
    assert "the download of MNIST broke off" in caplog.text
    assert list(idx.folder("MNIST", tmp_path / "root").iterdir()) == []


def test_mnist_files_at_hand_need_no_network(offline, tmp_path):
    raw = idx.folder("MNIST", tmp_path)
    raw.mkdir(parents=True)
    for name, content in idx_files(24, 6).items():
        (raw / name).write_bytes(content)

    dataset = load_dataset("mnist", tmp_path)

    assert (dataset.name, dataset.image_shape, dataset.n_classes) == ("MNIST", (1, 2, 2), 3)
    assert [len(y) for _, y in splits(dataset)] == [22, 2, 6]
    seen = torch.cat([dataset.x_train, dataset.x_val])[:, 0] * 255
    assert sorted(seen.round().int().tolist()) == list(range(24))
    assert (dataset.x_test * 255).round().int().tolist() == [[i] * 4 for i in range(6)]
    assert dataset.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    assert not offline


def test_damaged_files_are_named(offline, tmp_path):
    raw = idx.folder("MNIST", tmp_path)
    raw.mkdir(parents=True)
    for name, content in idx_files(24, 6).items():
        (raw / name).write_bytes(content[:30])

    with pytest.raises(ResourceError, match=r"four whole files of MNIST .*delete that folder"):
        load_dataset("mnist", tmp_path)


def test_fashion_mnist_comes_from_the_system(offline, monkeypatch, tmp_path):
    system, root = tmp_path / "system", tmp_path / "root"
    system.mkdir()
    for name, content in idx_files(12, 3).items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"FashionMNIST": system})

    dataset = load_dataset("fashion-mnist", root)

    assert dataset.name == "Fashion-MNIST"
    assert [len(y) for _, y in splits(dataset)] == [11, 1, 3]
    present = [path.name for path in idx.folder("FashionMNIST", root).iterdir()]
    assert sorted(present) == sorted(idx.FILES)
    assert not offline


def test_fashion_mnist_out_of_reach_is_an_error(offline, tmp_path):
    with pytest.raises(ResourceError, match="got neither: connect, put its four files there"):
        load_dataset("fashion-mnist", tmp_path)


def test_folder_that_cannot_be_written_is_refused(offline, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"can be written, got .*: set LRENV_DATA"):
        load_dataset("mnist", tmp_path / "file")
    assert not offline
