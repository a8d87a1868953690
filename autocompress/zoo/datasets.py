"""The images of the built-in studies, as tensors by split.

Every function returns a mapping of split name to (inputs, targets): float32 inputs [n, c, h, w],
standardised with fixed constants, and int64 class labels [n]. Nothing is fetched from the internet
unless `download` is true. Carving missing splits and judging the data is `recover/data.py`.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import UsageError

Pairs = dict[str, tuple[Tensor, Tensor]]

_DIGIT = 8  # pixels
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# Mean and standard deviation per channel of the training images, pixels scaled to [0, 1].
DIGITS_STATS = ((0.3053,), (0.3760,))
FASHION_MNIST_STATS = ((0.2860,), (0.3530,))
CIFAR10_STATS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Images must fit in memory beside the search; this is where a folder of them is refused.
_MAX_IMAGE_BYTES = 8 * 10**9


def standardise_(pixels: Tensor, stats: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """(pixels - mean) / std per channel, in place; pixels [n, c, h, w] in [0, 1]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in stats)
    return pixels.sub_(mean).div_(std)


def digits() -> Pairs:
    """scikit-learn's handwritten digits: 1097 train, 350 val, 350 test, inputs [n, 1, 8, 8], 10 classes.

    The split is stratified and always the same, so that studies with different seeds can be compared.
    """
    images, labels, parts = _digits(held_out=350)
    return {name: _standardised_digits(images[rows], labels[rows]) for name, rows in parts.items()}


def placed_digits(*, field: int = 12, places: int = 5) -> Pairs:
    """The same digits, each at a random place of an empty field: inputs [n, 1, field, field], 10 classes.

    A network has to find the digit before it can read it, which is what a network of 5 kB is too small for. Each of
    the 600 val and 600 test digits is there once, so that samples are independent; each of the 597 train digits is
    there at `places` places. Split and places are always the same.

    Args:
        field: height and width in pixels, at least 8.
        places: of each training image, at least 1.
    Raises:
        UsageError: a field that no digit fits into, or no place at all.
    """
    if field < _DIGIT or places < 1:
        raise UsageError(f"placed_digits needs field >= {_DIGIT} and places >= 1, got {field} and {places}")
    images, labels, parts = _digits(held_out=600)
    random = np.random.default_rng(0)
    found = {}
    for name, rows in parts.items():
        rows = np.tile(rows, places if name == "train" else 1)
        corners = random.integers(0, field - _DIGIT + 1, (len(rows), 2))
        fields = np.zeros((len(rows), field, field), np.float32)
        for image, row, (top, left) in zip(fields, rows, corners, strict=True):
            image[top : top + _DIGIT, left : left + _DIGIT] = images[row]
        found[name] = _standardised_digits(fields, labels[rows])
    return found


def _digits(*, held_out: int) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Images [n, 8, 8] in [0, 1], labels [n], and the rows of each split: `held_out` for val and as many for test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=held_out, stratify=labels[rest], random_state=0)
    pixels = images.reshape(-1, _DIGIT, _DIGIT).astype(np.float32) / 16
    return pixels, labels.astype(np.int64), {"train": train, "val": val, "test": test}


def _standardised_digits(images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return standardise_(torch.from_numpy(images)[:, None], DIGITS_STATS), torch.from_numpy(labels)


def fashion_mnist(*, download: bool = False) -> Pairs:
    """Fashion-MNIST: 60,000 train and 10,000 test images, inputs [n, 1, 28, 28], 10 classes.

    Looks for the four idx files (.gz or raw) in AUTOCOMPRESS_DATA, in torchvision's folder under ./data
    and in Debian's package.

    Raises:
        UsageError: the files are nowhere, or one is corrupt or truncated.
    """
    folder = _find_fashion_mnist()
    if folder is None and download:
        _torchvision("FashionMNIST", train=True, download=True)
        folder = _find_fashion_mnist()
    if folder is None:
        raise UsageError(
            "Fashion-MNIST was not found; `apt install dataset-fashion-mnist`, or set AUTOCOMPRESS_DATA to the folder "
            "with its four idx files, or allow the download with `--set data.download=true`"
        )
    return {split: _read_idx_pair(folder, *names) for split, names in _FASHION_MNIST_FILES.items()}


def cifar10(*, download: bool = False) -> Pairs:
    """CIFAR-10 through torchvision: 50,000 train and 10,000 test images, inputs [n, 3, 32, 32], 10 classes.

    Raises:
        UsageError: the files are not in AUTOCOMPRESS_DATA or ./data and `download` is false, or they are corrupt.
    """
    pairs: Pairs = {}
    for split in ("train", "test"):
        data = _torchvision("CIFAR10", train=split == "train", download=download)
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).float().div_(255)
        pairs[split] = (standardise_(pixels, CIFAR10_STATS), torch.tensor(data.targets))
    return pairs


def imagefolder(*, path: str, size: int = 224, base: Path | None = None) -> Pairs:
    """Images in `path`/train/<class>/, and optionally val/ and test/ beside train/; inputs [n, 3, size, size].

    The shorter side is resized to `size`, the middle is cut out, and ImageNet's constants standardise it.

    Args:
        path: relative to `base`, or to the current directory without one.
        size: side of the inputs in pixels.
        base: folder of the study file.
    Raises:
        UsageError: no train folder, splits with different classes, or a file that is no image.
    """
    if size < 1:
        raise UsageError(f"the size of imagefolder must be at least 1 pixel, got {size}; set data.args.size")
    root = (base or Path()) / path
    if not (root / "train").is_dir():
        raise UsageError(f"{root} has no folder named train; imagefolder expects train/<class>/<image> inside it")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    found = {name: _image_index(root / name) for name in splits}
    for name in splits[1:]:
        if odd := sorted(set(found["train"].classes) ^ set(found[name].classes)):
            raise UsageError(
                f"{root}: train and {name} have different classes, {odd[0]!r} is in one only; add it or remove it"
            )
    return {name: _read_images(found[name], size) for name in splits}


BUILTIN_IMAGES: Mapping[str, Callable[..., Pairs]] = {
    "digits": digits,
    "placed_digits": placed_digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
}


def _data_root() -> Path:
    return Path(os.environ.get("AUTOCOMPRESS_DATA") or "data")


def _find_fashion_mnist() -> Path | None:
    folders = [Path("data/FashionMNIST/raw"), DEBIAN_FASHION_MNIST]
    if os.environ.get("AUTOCOMPRESS_DATA"):
        root = _data_root()
        folders = [root, root / "fashion-mnist", root / "FashionMNIST" / "raw", *folders]
    names = [name for pair in _FASHION_MNIST_FILES.values() for name in pair]
    return next((folder for folder in folders if all(_idx_file(folder, name) for name in names)), None)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx_pair(folder: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images_path, labels_path = _idx_file(folder, images_name), _idx_file(folder, labels_name)
    assert images_path is not None
    assert labels_path is not None
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise UsageError(
            f"{images_path} holds {len(images)} images but {labels_path.name} {len(labels)} labels; get both again"
        )
    if len(labels) == 0 or labels.max() > 9 or images.shape[1:] != (28, 28):
        raise UsageError(
            f"{images_path} and {labels_path.name} are not Fashion-MNIST (28x28, labels 0-9); get them again"
        )
    pixels = torch.from_numpy(images).unsqueeze(1).float().div_(255)
    return standardise_(pixels, FASHION_MNIST_STATS), torch.from_numpy(labels).long()


def read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes, gzip or raw.

    Layout: two zero bytes, 0x08, the number of axes, each length as big-endian uint32, then the bytes.

    Raises:
        UsageError: the file cannot be read, is corrupt or truncated, or has other axes than `ndim`.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read or is corrupt ({error}); get the file again") from error
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes([0, 0, 8, ndim]):
        raise UsageError(f"{path} is not an idx file of unsigned bytes with {ndim} axes; get the file again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=ndim, offset=4))
    if len(content) - start != math.prod(shape):
        raise UsageError(
            f"{path} is truncated or corrupt: {math.prod(shape)} bytes of data expected, got "
            f"{len(content) - start}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _torchvision(name: str, *, train: bool, download: bool) -> Any:
    import torchvision

    root = _data_root()
    try:
        return getattr(torchvision.datasets, name)(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        step = "check the connection" if download else "allow the download with `--set data.download=true`"
        raise UsageError(
            f"{name} could not be read from {root} ({str(error).splitlines()[0]}); set AUTOCOMPRESS_DATA to the folder "
            f"where torchvision put it, or {step}"
        ) from error


def _image_index(folder: Path) -> Any:
    import torchvision

    try:
        return torchvision.datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has a class without images or no class at all ({error}); add images") from error


def _read_images(index: Any, size: int) -> tuple[Tensor, Tensor]:
    from torchvision import transforms

    needed = len(index.samples) * 3 * size * size * 4
    if needed > _MAX_IMAGE_BYTES:
        raise UsageError(
            f"{index.root} would need {needed / 1e9:.1f} GB in memory at {size}x{size}, the limit is "
            f"{_MAX_IMAGE_BYTES / 1e9:.0f} GB; set a smaller data.args.size or use fewer images"
        )
    cut = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()])
    pixels = torch.empty(len(index.samples), 3, size, size)
    for row, (path, _) in enumerate(index.samples):
        try:
            pixels[row] = cut(index.loader(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be read as an image; replace or remove it") from error
    return standardise_(pixels, IMAGENET_STATS), torch.tensor(index.targets)
