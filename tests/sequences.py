"""Small networks over sequences, for the tests of what is special to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, INPUTS, CLASSES = 5, 6, 3


class Recurrent(nn.Module):
    """An embedding-free classifier: [n, 5, 6] to [n, 3]. `reads`: last, mean or state."""

    def __init__(
        self,
        kind: type[nn.RNNBase] = nn.LSTM,
        *,
        hidden: int = 8,
        layers: int = 1,
        both: bool = False,
        reads: str = "last",
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.rnn = kind(INPUTS, hidden, layers, batch_first=True, bidirectional=both)  # type: ignore[arg-type]
        width = hidden * (2 if both else 1)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.fc = nn.Linear(hidden if reads == "state" else width, CLASSES)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.rnn(x)
        if self.reads == "state":
            last = state[0] if isinstance(state, tuple) else state
            logits: Tensor = self.fc(last[-1])
        else:
            logits = self.fc(self.norm(output.mean(1) if self.reads == "mean" else output[:, -1]))
        return logits


class Joined(nn.Module):
    """Hand-written attention with one projection, and a head size that is computed from the width."""

    def __init__(self, width: int, heads: int, *, interleaved: bool = False) -> None:
        super().__init__()
        self.num_heads, self.interleaved = heads, interleaved
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, width = x.shape
        size = width // self.num_heads
        if self.interleaved:
            q, k, v = self.qkv(x).view(n, steps, self.num_heads, 3, size).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).view(n, steps, 3, self.num_heads, size).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / size**0.5).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, steps, width))
        return out


class Separate(nn.Module):
    """Hand-written causal attention with three projections, values first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.v_proj, self.q_proj, self.k_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out


class Odd(Joined):
    """What looks like an attention and is none."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: Tensor = self.proj(torch.sigmoid(q) * k + v)
        return out


class Attending(nn.Module):
    """[n, 5, 6] to [n, 3] through one attention over 8 channels in 4 heads."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUTS, 8)
        self.attention = attention
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        logits: Tensor = self.fc((x + self.attention(x)).mean(1))
        return logits


def encoder(*, batch_first: bool = True) -> nn.Module:
    """[n, 5, 8] to [n, 3] through `nn.TransformerEncoder`."""
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(8 * STEPS, CLASSES))


def inputs(count: int = 4, width: int = INPUTS) -> Tensor:
    return torch.randn(count, STEPS, width, generator=torch.Generator().manual_seed(1))
