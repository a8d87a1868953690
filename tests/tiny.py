"""The smallest model and data on which every stage has something to do.

At module level and importable by name, so that worker processes can unpickle them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4
CHANNELS = 8


class TinyNet(nn.Module):
    """conv-bn-relu, a residual conv-bn, pool, linear: [n, 1, 8, 8] to [n, 4]."""

    def __init__(self, channels: int = CHANNELS, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        out: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return out


def make_tiny_data() -> dict[str, tuple[Tensor, Tensor]]:
    """256 train, 64 val and 64 test images [n, 1, 8, 8], 4 balanced classes.

    The class is the period and direction of a wave with a random phase: pooled responses of 3x3 filters tell
    them apart, single pixels do not.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([rows * 0.8, columns * 0.8, rows * 2.2, columns * 2.2])

    def split(count: int) -> tuple[Tensor, Tensor]:
        targets = torch.arange(count) % CLASSES
        phase = torch.rand(count, 1, 1, generator=generator) * 2 * torch.pi
        noise = torch.randn(count, 8, 8, generator=generator) * 0.8
        return (torch.sin(waves[targets] + phase) + noise).unsqueeze(1), targets

    return {"train": split(256), "val": split(64), "test": split(64)}
