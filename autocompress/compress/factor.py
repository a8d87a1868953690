"""Replaces layers by two factors of low rank: the best ones for the inputs that the layer really gets.

With inputs of second moments G = E[h h^T] the error of a factored W is the size of (W - B A) G^(1/2). It is least where
B holds the first left singular vectors of W G^(1/2) and A = B^T W. Without inputs G is the identity, and that is the
plain truncated singular value decomposition. Which layers can be factored is found in `space/factors.py`.

Source: Eckart and Young 1936 for the plain case; with G as in Chen et al. 2021, "DRONE", equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.drop import is_dropped
from autocompress.plan import CompressionPlan
from autocompress.records import LayerFacts, ModelFacts
from autocompress.space.factors import Factored, as_matrix, merged_weight, splits_last
from autocompress.space.layers import replace_module_
from autocompress.space.ranks import rank_of, refuse_unknown

_RIDGE = 1e-3  # of the mean diagonal: directions that no sample had are not free
_EXACT = 1024  # the smaller side of a matrix; beyond, only its first singular vectors are computed
_OVERSAMPLED, _ITERATIONS = 16, 4


def factor_(
    model: nn.Module, plan: CompressionPlan, facts: ModelFacts, grams: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Factor the layers that the plan names, in place, where that pays; those of dropped blocks are passed over.

    Args:
        model: pruned, its blocks dropped.
        facts: of the dense model.
        grams: of the inputs of `model`'s layers, as `input_grams` gives them; None takes all inputs as equal.
    Raises:
        ValueError: the plan names a layer that cannot be factored.
    """
    refuse_unknown(plan, facts)
    modules: dict[str, Any] = dict(model.named_modules())
    for layer in facts.layers:
        ratio = plan.rank_ratio.get(layer.name, 0.0)
        if ratio > 0 and not is_dropped(modules, layer.name):
            module = modules[layer.name]
            if rank := _rank(layer, module, ratio):
                replace_module_(model, layer.name, factored(module, rank, (grams or {}).get(layer.name)))
    return model


@torch.no_grad()
def factored(layer: Any, rank: int, gram: Tensor | None = None) -> Factored:
    """The two factors of a linear layer or convolution that lose least at this rank.

    Args:
        gram: [in, in] of its inputs; all places of a kernel are taken to see the same.
    """
    factors, last = Factored(layer, rank), splits_last(layer)
    matrix = as_matrix(layer.weight.float(), last=last)  # [out x second taps, in x first taps]
    vectors = _first_vectors(_weighed(matrix, gram), rank)
    rows = vectors.T @ matrix
    size = rows.norm(dim=1).clamp_min(1e-12).sqrt()  # both factors get the same share of it: they train alike
    first, second = rows / size[:, None], vectors * size
    factors.first.weight.copy_(first.reshape(factors.first.weight.shape))
    if last:  # [out, k, rank] with the axes between, which are 1
        shape = factors.second.weight.shape
        second = second.reshape(shape[0], shape[-1], rank).transpose(1, 2)
    factors.second.weight.copy_(second.reshape(factors.second.weight.shape))
    return factors


def merge_factors(state: Mapping[str, Tensor], plan: CompressionPlan) -> dict[str, Tensor]:
    """The state dict of a plan's network in which every pair of factors is the weight of one layer again."""
    merged = dict(state)
    for name in plan.rank_ratio:
        if f"{name}.first.weight" in merged:
            first, second = (merged.pop(f"{name}.{part}.weight") for part in ("first", "second"))
            merged[f"{name}.weight"] = merged_weight(first, second)
            if (bias := merged.pop(f"{name}.second.bias", None)) is not None:
                merged[f"{name}.bias"] = bias
    return merged


def _rank(layer: LayerFacts, module: Any, ratio: float) -> int:
    """As the layer's present weight allows; a projection that holds channels several times has them as outputs here."""
    outputs, inputs = module.weight.shape[:2]
    copies = layer.weights // (layer.in_channels * layer.out_channels) if module.weight.ndim == 2 else 1
    return rank_of(layer, outputs / copies, inputs, ratio)


def _weighed(matrix: Tensor, gram: Tensor | None) -> Tensor:
    """The matrix times the square root of its inputs' second moments: any square root has the same left vectors."""
    if gram is None:
        return matrix
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    root = torch.linalg.cholesky(gram.double() + ridge * torch.eye(len(gram)))
    taps = matrix.shape[1] // len(gram)
    blocks = matrix.double().reshape(len(matrix), len(gram), taps)  # [rows, in, first taps]
    return torch.einsum("rit,ij->rjt", blocks, root).flatten(1)


def _first_vectors(matrix: Tensor, rank: int) -> Tensor:
    """Left singular vectors of the largest singular values, [rows, rank]."""
    if min(matrix.shape) <= _EXACT:
        exact: Tensor = torch.linalg.svd(matrix.double(), full_matrices=False).U
        return exact[:, :rank].float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first: Tensor = torch.svd_lowrank(matrix.float(), q=min(rank + _OVERSAMPLED, *matrix.shape), niter=_ITERATIONS)[
            0
        ]
    return first[:, :rank]
