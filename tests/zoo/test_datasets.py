"""The built-in data: sizes, scaling, where files are looked for and what is said when they are not there."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from autocompress.errors import UsageError
from autocompress.zoo import datasets
from autocompress.zoo.datasets import (
    DEBIAN_FASHION_MNIST,
    cifar10,
    digits,
    fashion_mnist,
    imagefolder,
    placed_digits,
    read_idx,
)

NAMES = {
    "train-images-idx3-ubyte": (6, 28, 28),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (3, 28, 28),
    "t10k-labels-idx1-ubyte": (3,),
}


def gzipped(content: bytes) -> bytes:
    """gzip without the time of day, so that the tests have the same names in every process."""
    return gzip.compress(content, mtime=0)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def write_fashion_mnist(folder: Path, *, zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in NAMES.items():
        content = idx_bytes((np.arange(np.prod(shape)) % 10).astype(np.uint8).reshape(shape))
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzipped(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory and a machine without any data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "no-package")
    return tmp_path


def test_digits_are_1097_350_350_and_standardised() -> None:
    pairs = digits()
    assert {name: tuple(x.shape) for name, (x, _) in pairs.items()} == {
        "train": (1097, 1, 8, 8),
        "val": (350, 1, 8, 8),
        "test": (350, 1, 8, 8),
    }
    everything = torch.cat([x for x, _ in pairs.values()])
    assert everything.dtype == torch.float32
    assert float(everything.mean()) == pytest.approx(0, abs=1e-3)
    assert float(everything.std()) == pytest.approx(1, abs=1e-3)
    # 0 of 16 is the darkest pixel
    assert float(everything.min()) == pytest.approx(-0.3053 / 0.3760, abs=1e-6)


def test_digits_are_stratified_and_every_sample_is_in_one_split() -> None:
    pairs = digits()
    counts = {name: torch.bincount(y) for name, (_, y) in pairs.items()}
    assert pairs["train"][1].dtype == torch.int64
    assert torch.bincount(torch.cat([y for _, y in pairs.values()])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    for count in (counts["val"], counts["test"]):
        assert count.min() >= 33
        assert count.max() <= 37
    rows = {x.numpy().tobytes() for inputs, _ in pairs.values() for x in inputs}
    assert len(rows) == 1797


def test_digits_are_the_same_every_time() -> None:
    first, second = digits(), digits()
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)


def test_placed_digits_are_whole_digits_somewhere_on_an_empty_field() -> None:
    pairs = placed_digits()
    assert {name: tuple(x.shape) for name, (x, _) in pairs.items()} == {
        "train": (5 * 597, 1, 12, 12),
        "val": (600, 1, 12, 12),
        "test": (600, 1, 12, 12),
    }
    known = {x.numpy().tobytes(): int(y) for xs, ys in digits().values() for x, y in zip(xs, ys, strict=True)}
    used: dict[str, set[bytes]] = {}
    for name, (inputs, targets) in pairs.items():
        for image, target in zip(inputs, targets, strict=True):
            windows = image[0].unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 8, 8)
            own = next(w for w in windows if w.clone().numpy().tobytes() in known)
            assert known[own.clone().numpy().tobytes()] == int(target)
            assert float(image.sum() - own.sum()) == pytest.approx(-(144 - 64) * 0.3053 / 0.3760, abs=1e-2)
            used.setdefault(name, set()).add(own.clone().numpy().tobytes())
    assert {name: len(images) for name, images in used.items()} == {"train": 597, "val": 600, "test": 600}
    assert len(set.union(*used.values())) == 1797
    assert all(torch.equal(x, placed_digits()[name][0]) for name, (x, _) in pairs.items())


@pytest.mark.parametrize(("field", "places"), [(7, 1), (12, 0)])
def test_a_digit_needs_a_field_that_it_fits_into_and_a_place(field: int, places: int) -> None:
    with pytest.raises(UsageError, match="placed_digits needs field >= 8 and places >= 1"):
        placed_digits(field=field, places=places)


@pytest.mark.parametrize("subfolder", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_found_in_and_below_the_data_folder(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str, zipped: bool
) -> None:
    write_fashion_mnist(nowhere / "mine" / subfolder, zipped=zipped)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(nowhere / "mine"))
    pairs = fashion_mnist()
    assert set(pairs) == {"train", "test"}
    inputs, targets = pairs["train"]
    assert inputs.shape == (6, 1, 28, 28)
    assert targets.tolist() == [0, 1, 2, 3, 4, 5]
    # the second pixel is 1 of 255
    assert float(inputs[0, 0, 0, 1]) == pytest.approx((1 / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert pairs["test"][0].shape == (3, 1, 28, 28)


def test_fashion_mnist_is_found_where_torchvision_puts_it(nowhere: Path) -> None:
    write_fashion_mnist(nowhere / "data" / "FashionMNIST" / "raw")
    assert len(fashion_mnist()["train"][0]) == 6


def test_fashion_mnist_that_is_nowhere_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(UsageError, match="not found") as caught:
        fashion_mnist()
    for step in ("apt install dataset-fashion-mnist", "AUTOCOMPRESS_DATA", "--set data.download=true"):
        assert step in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_one_of_the_four_files_does_not_count(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fashion_mnist(nowhere / "mine")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(folder))
    with pytest.raises(UsageError, match="not found"):
        fashion_mnist()


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_debian_package_holds_60000_and_10000_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    pairs = fashion_mnist()
    assert pairs["train"][0].shape == (60000, 1, 28, 28)
    assert torch.bincount(pairs["test"][1]).tolist() == [1000] * 10
    assert float(pairs["train"][0].mean()) == pytest.approx(0, abs=1e-3)
    assert float(pairs["train"][0].std()) == pytest.approx(1, abs=1e-3)


IMAGES = "t10k-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"not gzip at all", "cannot be read or is corrupt"),
        (IMAGES, gzipped(bytes(200))[:-12], "cannot be read or is corrupt"),
        (IMAGES, gzipped(idx_bytes(np.zeros((3, 28, 28), np.uint8))[:-1]), "truncated.*2352 bytes.*got 2351"),
        (IMAGES, gzipped(idx_bytes(np.zeros((3, 28, 28), np.uint8)) + b"x"), "2352 bytes.*got 2353"),
        (IMAGES, gzipped(bytes([0, 0, 13, 3]) + bytes(12)), "not an idx file"),
        (IMAGES, gzipped(b"\0\0"), "not an idx file"),
        (IMAGES, gzipped(idx_bytes(np.zeros(9, np.uint8))), "not an idx file.*3 axes"),
        (IMAGES, gzipped(idx_bytes(np.zeros((2, 28, 28), np.uint8))), "holds 2 images.*3 labels"),
        (IMAGES, gzipped(idx_bytes(np.zeros((3, 32, 32), np.uint8))), "not Fashion-MNIST"),
        ("t10k-labels-idx1-ubyte.gz", gzipped(idx_bytes(np.full(3, 10, np.uint8))), "not Fashion-MNIST"),
    ],
)
def test_a_damaged_idx_file_is_named(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    folder = write_fashion_mnist(nowhere / "mine")
    (folder / name).write_bytes(content)
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(folder))
    with pytest.raises(UsageError, match=message) as caught:
        fashion_mnist()
    assert name in str(caught.value)
    assert "again" in str(caught.value)


def test_read_idx_gives_back_what_was_written(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "some").write_bytes(idx_bytes(array))
    assert np.array_equal(read_idx(tmp_path / "some", ndim=3), array)


def test_cifar10_is_not_fetched_unasked(nowhere: Path) -> None:
    with pytest.raises(UsageError, match=r"CIFAR10 could not be read.*AUTOCOMPRESS_DATA.*--set data.download=true"):
        cifar10()


def test_cifar10_is_read_from_torchvisions_own_files(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the published layout with a few images; torchvision knows the real ones by their digests."""
    kind = torchvision.datasets.CIFAR10
    folder = nowhere / "mine" / kind.base_folder
    folder.mkdir(parents=True)
    white_red_channel = np.repeat(np.array([255, 0, 0], np.uint8), 32 * 32)
    batches = {f"data_batch_{i}": [i, 9 - i] for i in range(1, 6)} | {"test_batch": [7]}

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    digests = {
        name: write(name, {"data": np.tile(white_red_channel, (len(labels), 1)), "labels": labels})
        for name, labels in batches.items()
    }
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(kind, "train_list", [[n, d] for n, d in digests.items() if n != "test_batch"])
    monkeypatch.setattr(kind, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta})
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(nowhere / "mine"))
    pairs = cifar10()
    assert {split: tuple(inputs.shape) for split, (inputs, _) in pairs.items()} == {
        "train": (10, 3, 32, 32), "test": (1, 3, 32, 32)
    }  # fmt: skip
    assert pairs["train"][1].tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    red, green = pairs["test"][0][0, 0, 0, 0].item(), pairs["test"][0][0, 1, 31, 31].item()
    assert (red, green) == pytest.approx(((1 - 0.4914) / 0.2470, -0.4822 / 0.2435), rel=1e-5)
    (folder / "test_batch").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="CIFAR10 could not be read"):
        cifar10()


def make_images(root: Path, split: str, classes: dict[str, int], side: int = 12) -> None:
    for value, (name, count) in enumerate(classes.items()):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (side, side + 4), color=(value * 255, 0, 0)).save(folder / f"{index}.png")


def test_imagefolder_reads_splits_relative_to_the_study(tmp_path: Path) -> None:
    make_images(tmp_path / "pets", "train", {"cat": 3, "dog": 2})
    make_images(tmp_path / "pets", "val", {"cat": 1, "dog": 1})
    pairs = imagefolder(path="pets", size=8, base=tmp_path)
    assert set(pairs) == {"train", "val"}
    inputs, targets = pairs["train"]
    assert inputs.shape == (5, 3, 8, 8)
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [0, 0, 0, 1, 1]
    # a dog is pure red: 1 in the red channel, 0 in green
    assert float(inputs[4, 0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)
    assert float(inputs[4, 1, 0, 0]) == pytest.approx(-0.456 / 0.224, abs=1e-5)


def test_imagefolder_without_train_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder named train; imagefolder expects train/<class>/<image>"):
        imagefolder(path="nothing", base=tmp_path)


def test_imagefolder_with_different_classes_names_the_odd_one(tmp_path: Path) -> None:
    make_images(tmp_path, "train", {"cat": 1, "dog": 1})
    make_images(tmp_path, "test", {"cat": 1, "fox": 1})
    with pytest.raises(UsageError, match="train and test have different classes, 'dog' is in one only"):
        imagefolder(path=str(tmp_path))


def test_imagefolder_with_an_empty_class_says_so(tmp_path: Path) -> None:
    make_images(tmp_path, "train", {"cat": 1, "dog": 0})
    with pytest.raises(UsageError, match="a class without images"):
        imagefolder(path=str(tmp_path))


def test_imagefolder_names_the_file_that_is_no_image(tmp_path: Path) -> None:
    make_images(tmp_path, "train", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "dog" / "0.png").write_text("no image")
    with pytest.raises(UsageError, match=r"dog/0\.png cannot be read as an image"):
        imagefolder(path=str(tmp_path))


def test_imagefolder_refuses_what_does_not_fit_in_memory(tmp_path: Path) -> None:
    make_images(tmp_path, "train", {"cat": 1, "dog": 1})
    with pytest.raises(UsageError, match=r"would need 24\.0 GB in memory.*smaller data\.args\.size"):
        imagefolder(path=str(tmp_path), size=31_623)
    with pytest.raises(UsageError, match="at least 1 pixel, got 0"):
        imagefolder(path=str(tmp_path), size=0)
