"""Networks of the built-in studies that are no convolutional ones: recurrent, attending, and plain layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowLSTM(nn.Module):
    """Reads an image row by row and classifies it by the last state.

    Args:
        size: height and width of the images, [batch, 1, size, size].
        hidden: units of each layer and direction.
    """

    def __init__(
        self, size: int = 28, classes: int = 10, hidden: int = 128, layers: int = 1, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.rnn = nn.LSTM(size, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x.squeeze(1))
        logits: Tensor = self.fc(steps[:, -1])
        return logits


class WordGRU(nn.Module):
    """Reads words letter by letter, [batch, letters] of indices, and classifies them by the last state.

    Args:
        letters: size of the alphabet.
        width: of the embedding.
    """

    def __init__(self, letters: int = 64, classes: int = 5, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.rnn = nn.GRU(width, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        steps, _ = self.rnn(self.embed(words))
        logits: Tensor = self.fc(steps[:, -1])
        return logits


class SmallViT(nn.Module):
    """A vision transformer for small images, without a class token: the mean of the patches is classified.

    Args:
        size, patch: sides of the image and of a patch; `patch` divides `size`.
        width: of every patch; `heads` divides it.
        hidden: of the layers' inner networks.
    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; norms first, as there.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 10,
        size: int = 28,
        patch: int = 7,
        width: int = 64,
        heads: int = 4,
        hidden: int = 128,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.fc(self.norm(self.layers(x)).mean(1))
        return logits


class TableMLP(nn.Module):
    """Three plain layers from [batch, features] to [batch, outputs]."""

    def __init__(self, features: int = 10, outputs: int = 1, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def row_lstm(classes: int = 10, hidden: int = 128, layers: int = 1, bidirectional: bool = False) -> RowLSTM:
    """An LSTM over the rows of 28x28 images; 83 k parameters at 128 hidden units."""
    return RowLSTM(28, classes, hidden, layers, bidirectional)


def word_gru(classes: int = 5, hidden: int = 128) -> WordGRU:
    """A GRU over the letters of words; 65 k parameters at 128 hidden units."""
    return WordGRU(classes=classes, hidden=hidden)


def small_vit(in_channels: int = 1, classes: int = 10, width: int = 64, depth: int = 4) -> SmallViT:
    """A vision transformer for 28x28 images in 16 patches; 139 k parameters at width 64 and depth 4."""
    return SmallViT(in_channels, classes, width=width, hidden=2 * width, depth=depth)


def table_mlp(features: int = 10, outputs: int = 1, hidden: int = 64) -> TableMLP:
    """Three plain layers; 5 k parameters at 64 hidden units."""
    return TableMLP(features, outputs, hidden)
