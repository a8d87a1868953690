"""The small tasks: three structurally different networks and one data set, as factories of study files.

`residual.toml`, `depthwise.toml` and `plain.toml` beside this file name them, so a task is also a study of its own:
`autocompress search studies/search_benchmark/residual.toml`. Networks take any image size above 4x4.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import UsageError
from autocompress.zoo.datasets import Pairs, digits, fashion_mnist
from autocompress.zoo.models import InvertedResidual, ResNet

TRAIN, VAL, TEST, JUDGED = 6000, 2000, 2000, 20_000


def small_images() -> Pairs:
    """A fixed subset of Fashion-MNIST at 14x14: 6,000 train, 2,000 val and 2,000 test images, [n, 1, 14, 14].

    scikit-learn's digits would be quick enough, but every network reaches 99 % there and no two can be told apart.
    They stand in, with a warning, where the files of Fashion-MNIST are missing; such results are another benchmark.
    """
    whole = _fashion_mnist()
    return digits() if whole is None else subset(whole, train=TRAIN, val=VAL, test=TEST)


def judged_images() -> tuple[Tensor, Tensor]:
    """What the benchmark judges on: 20,000 images that no study trains or selects on, the test images first.

    Two networks of equal size differ by a point or two, and on 2,000 images one standard error is 0.8 points. The
    study's own test images are among these; it looks at them only after everything was chosen.
    """
    whole = _fashion_mnist()
    return digits()["test"] if whole is None else held_out(whole, used=TRAIN + VAL, count=JUDGED)


def subset(whole: Pairs, *, train: int, val: int, test: int) -> Pairs:
    """The same samples at every call, whatever the seed of a study, at half the height and width.

    Train and val are disjoint parts of the whole's train, test is a part of its test.
    """
    order = _order(len(whole["train"][0]))
    parts = {
        "train": ("train", order[:train]),
        "val": ("train", order[train : train + val]),
        "test": ("test", _order(len(whole["test"][0]))[:test]),
    }
    return {name: _halved(whole[source], rows) for name, (source, rows) in parts.items()}


def held_out(whole: Pairs, *, used: int, count: int) -> tuple[Tensor, Tensor]:
    """All of the whole's test, and of its train what is missing to `count`, behind the `used` rows of `subset`."""
    test = _halved(whole["test"], _order(len(whole["test"][0])))
    rows = _order(len(whole["train"][0]))[used : used + count - len(test[0])]
    more = _halved(whole["train"], rows)
    return torch.cat([test[0], more[0]]), torch.cat([test[1], more[1]])


def residual(classes: int = 10) -> nn.Module:
    """A ResNet of three stages of two blocks; four of the six blocks have an identity beside them."""
    return ResNet(in_channels=1, classes=classes, widths=(16, 32, 64), depths=(2, 2, 2))


def depthwise(classes: int = 10) -> nn.Module:
    """A MobileNetV2 of five inverted residual blocks; two of them have an identity beside them."""
    return Depthwise(in_channels=1, classes=classes)


def plain(classes: int = 10) -> nn.Module:
    """Six convolutions in a row, as in VGG, and one linear layer: nothing is coupled to anything but its neighbour."""
    return Plain(in_channels=1, classes=classes)


class Depthwise(nn.Module):
    """MobileNetV2 with fewer and narrower stages than the zoo's.

    Args:
        in_channels: colour channels of the input, [batch, in_channels, height, width].
        classes: number of outputs.
    """

    # (expand, channels, repeats, stride of the first)
    stages = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2))

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        channels = 16
        for expand, width, repeats, stride in self.stages:
            for index in range(repeats):
                layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expand))
                channels = width
        layers += [nn.Conv2d(channels, 160, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(160, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


class Plain(nn.Module):
    """Convolution, batch norm, ReLU, six times, with a pooling after the second and the fourth.

    Args:
        in_channels: colour channels of the input, [batch, in_channels, height, width].
        classes: number of outputs.
        widths: channels of the three pairs of convolutions.
    """

    def __init__(self, in_channels: int = 1, classes: int = 10, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if index else []
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def _fashion_mnist() -> Pairs | None:
    try:
        return fashion_mnist()
    except UsageError as error:
        warnings.warn(f"the digits are used instead of Fashion-MNIST: {error}", stacklevel=3)
        return None


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _halved(pair: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    inputs, targets = pair
    return functional.avg_pool2d(inputs[rows], 2), targets[rows].clone()
