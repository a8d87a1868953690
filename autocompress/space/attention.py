"""Rewrites self-attention as plain layers, so that its heads can be pruned and its projections quantized.

`nn.MultiheadAttention` hides its projections in one parameter that is no layer, and it and most hand-written modules
compute the size of a head from the width, so fewer heads would break them. What a module computes is recognised by
trying: a module with the layers of an attention is replaced by `HeadedAttention` over the same layers, under the same
names, if the network's outputs stay the same on real samples. Everything else is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.records import Skip
from autocompress.space.slices import Slice, SliceGroup
from autocompress.space.watch import watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an attention's layers are to be read.

    Attributes:
        inputs: names of its one joined or three separate projections, queries first.
        output: name of the projection after it.
        interleaved: the joined projection holds queries, keys and values head by head, not one after the other.
        causal: no place sees later ones.
        pair: it returns a pair, with None for the weights.
    """

    inputs: tuple[str, ...]
    output: str
    heads: int
    interleaved: bool = False
    causal: bool = False
    pair: bool = False


class HeadedAttention(nn.Module):
    """Self-attention over [batch, places, width] whose number of heads does not depend on the width.

    Called like the module it replaces: with x alone, or like `nn.MultiheadAttention` with the same tensor as query, key
    and value, and masks.

    Args:
        layers: the module's own projections by name.
        layout: which is which.
        dropout: share of the attention weights left out while training.
    """

    # What nn.TransformerEncoderLayer reads before it chooses a fused kernel, which would go around this module.
    batch_first, in_proj_weight, in_proj_bias, _qkv_same_embed_dim = True, None, None, False

    def __init__(self, layers: dict[str, nn.Module], layout: Layout, *, dropout: float = 0.0) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.layout, self.dropout = layout, dropout
        self.num_heads = layout.heads
        self.head_dim = int(layers[layout.output].in_features) // layout.heads  # type: ignore[arg-type]

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        if (key is not None and key is not query) or (value is not None and value is not query):
            raise ValueError("only self-attention can be rewritten: query, key and value must be one tensor")
        q, k, v = self._project(query)
        mask = _joined_mask(attn_mask, key_padding_mask, q.dtype)
        causal = self.layout.causal and mask is None
        if torch.compiler.is_exporting():
            out = _attend(q, k, v, _causal_mask(q) if causal else mask)
        else:
            share = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=share, is_causal=causal)
        out = self.get_submodule(self.layout.output)(out.transpose(1, 2).flatten(2))
        return (out, None) if self.layout.pair else out

    def _project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [batch, heads, places, head_dim]."""
        parts = [self.get_submodule(name)(x) for name in self.layout.inputs]
        shape = (self.num_heads, self.head_dim)
        if self.layout.interleaved:
            joined = parts[0].unflatten(-1, (self.num_heads, 3, self.head_dim)).permute(3, 0, 2, 1, 4)
            return list(joined.unbind(0))
        split = parts if len(parts) == 3 else parts[0].chunk(3, -1)
        return [p.unflatten(-1, shape).transpose(1, 2) for p in split]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """What torch's own function computes, in as few nodes as a graph needs for it."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    result: Tensor = (scores if mask is None else scores + mask).softmax(-1) @ v
    return result


def _causal_mask(q: Tensor) -> Tensor:
    places = q.shape[-2]
    return torch.full((places, places), -torch.inf, dtype=q.dtype, device=q.device).triu(1)


def _joined_mask(attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """One mask to add to the scores, [batch or 1, 1, queries or 1, keys]."""
    if attn_mask is None and padding is None:
        return None
    if attn_mask is not None and attn_mask.ndim != 2:
        raise ValueError("a mask per head cannot be kept when heads are removed")
    masks = [attn_mask[None, None]] if attn_mask is not None else []
    masks += [padding[:, None, None]] if padding is not None else []
    added = [torch.zeros_like(m, dtype=dtype).masked_fill(m, -torch.inf) if m.dtype == torch.bool else m for m in masks]
    return sum(added[1:], added[0])


def open_attention_(model: nn.Module, example: Sequence[Tensor]) -> list[Skip]:
    """Replace what is a self-attention by `HeadedAttention` over the same layers, in place.

    Returns:
        Attention of `nn.MultiheadAttention` whose heads cannot be pruned, with the reason.

    Args:
        model: in eval mode.
        example: real inputs of one forward, each [batch, ...].
    """
    skips: list[Skip] = []
    with torch.no_grad():
        wanted = model(*example)
    size = max(float(wanted.abs().amax()), 1e-6)
    for name, module in [(n, m) for n, m in model.named_modules() if n and _may_be_attention(m)]:
        parent, _, child = name.rpartition(".")
        holder = model.get_submodule(parent)
        for layout in _layouts(model, name, module, example):
            setattr(holder, child, _rewritten(module, layout))
            try:
                with torch.no_grad():
                    same = torch.allclose(model(*example), wanted, rtol=1e-4, atol=2e-5 * size)
            except Exception:  # a forward that asks its attention for something else than this module gives
                same = False
            if same:
                break
            setattr(holder, child, module)
        if isinstance(model.get_submodule(name), nn.MultiheadAttention):
            reason = "it is no plain self-attention with the batch first, so its heads stay"
            skips.append(Skip(name=name, what="prune", reason=reason))
    return skips


def find_head_groups(model: nn.Module) -> list[SliceGroup]:
    """A group for every rewritten attention; its channels go in whole heads."""
    return [
        _group(name, module)
        for name, module in model.named_modules()
        if isinstance(module, HeadedAttention) and module.num_heads > 1
    ]


def _group(name: str, module: HeadedAttention) -> SliceGroup:
    layout, heads, size = module.layout, module.num_heads, module.head_dim
    width = heads * size
    channels = torch.arange(width)
    if len(layout.inputs) == 3:
        places = channels[:, None]
    elif layout.interleaved:
        first = channels // size * 3 * size + channels % size
        places = torch.stack([first + part * size for part in range(3)], dim=1)
    else:
        places = torch.stack([channels + part * width for part in range(3)], dim=1)
    slices, sizes = [], [(name, "num_heads", 1)]
    for part in layout.inputs:
        layer: Any = module.get_submodule(part)
        slices.append(Slice(module=f"{name}.{part}", tensor="weight", axis=0, places=places))
        if layer.bias is not None:
            slices.append(Slice(module=f"{name}.{part}", tensor="bias", axis=0, places=places))
        sizes.append((f"{name}.{part}", "out_features", places.shape[1] * size))
    output = f"{name}.{layout.output}"
    slices.append(Slice(module=output, tensor="weight", axis=1, places=channels[:, None], reads=True))
    sizes.append((output, "in_features", size))
    layers = tuple(f"{name}.{part}" for part in layout.inputs)
    return SliceGroup(
        name=name, channels=width, unit=size, slices=tuple(slices), sizes=tuple(sizes), layers=layers
    )  # fmt: skip


def _may_be_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    return not isinstance(module, HeadedAttention) and any(True for _ in _candidates(module))


def _candidates(module: nn.Module) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """(input projections, output projection, heads) that the module's own linear layers and numbers allow."""
    linear = {n: m for n, m in module.named_children() if isinstance(m, nn.Linear)}
    if len(linear) not in (2, 4):
        return
    names = list(linear)
    counts = sorted({v for k, v in vars(module).items() if _is_count(v) and ("head" in k.lower() or k == "h")})
    for output in reversed(names):
        inputs = tuple(n for n in names if n != output)
        width = linear[output].in_features
        rows = 3 * width if len(inputs) == 1 else width
        if any(linear[n].out_features != rows for n in inputs):
            continue
        for heads in counts:
            if width % heads == 0:
                for order in _orders(inputs):
                    yield order, output, heads


def _orders(inputs: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Queries, keys and values as the names say, or else as they were made."""
    if len(inputs) == 1:
        return [inputs]
    named = tuple(next((n for n in inputs if n.lower().lstrip("w_").startswith(letter)), "") for letter in "qkv")
    return [named] if len(set(named)) == 3 and "" not in named and named != inputs else [inputs]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 256


def _layouts(model: nn.Module, name: str, module: nn.Module, example: Sequence[Tensor]) -> list[Layout]:
    if isinstance(module, nn.MultiheadAttention):
        plain = module.batch_first and module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
        if not plain:
            return []
        return [Layout(inputs=("in_proj",), output="out_proj", heads=module.num_heads, pair=True)]
    if not _takes_one_sequence(model, name, example):
        return []
    found = []
    for inputs, output, heads in _candidates(module):
        for interleaved in (False, True) if len(inputs) == 1 else (False,):
            found += [
                Layout(inputs=inputs, output=output, heads=heads, interleaved=interleaved, causal=causal)
                for causal in (False, True)
            ]
    return found


def _takes_one_sequence(model: nn.Module, name: str, example: Sequence[Tensor]) -> bool:
    """Whether the module maps one tensor [batch, places, width] to one of the same shape."""
    calls: list[bool] = []

    def see(_: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0] if inputs else None
        alone = not any(isinstance(i, Tensor) for i in inputs[1:])
        is_sequence = isinstance(x, Tensor) and x.ndim == 3 and isinstance(output, Tensor) and output.shape == x.shape
        calls.append(alone and is_sequence)

    target = model.get_submodule(name)
    with watched(model, lambda m: m is target, see), torch.no_grad():
        model(*example)
    return bool(calls) and all(calls)


def _rewritten(module: Any, layout: Layout) -> HeadedAttention:
    if isinstance(module, nn.MultiheadAttention):
        joined = nn.Linear(module.embed_dim, 3 * module.embed_dim, bias=module.in_proj_bias is not None)
        joined.weight = module.in_proj_weight
        if module.in_proj_bias is not None:
            joined.bias = module.in_proj_bias
        out = nn.Linear(module.embed_dim, module.embed_dim, bias=module.out_proj.bias is not None)
        out.weight, out.bias = module.out_proj.weight, module.out_proj.bias
        attention = HeadedAttention({"in_proj": joined, "out_proj": out}, layout, dropout=float(module.dropout))
    else:
        children = {n: m for n, m in module.named_children() if n in (*layout.inputs, layout.output)}
        attention = HeadedAttention(children, layout, dropout=_dropout(module))
    attention.train(module.training)
    return attention


def _dropout(module: nn.Module) -> float:
    shares = [m.p for m in module.children() if isinstance(m, nn.Dropout)]
    return float(shares[0]) if shares else 0.0


def copy_opened(model: nn.Module, example: Sequence[Tensor]) -> nn.Module:
    """A copy of a network in eval mode with its attention rewritten."""
    opened = copy.deepcopy(model)
    open_attention_(opened, example)
    return opened
