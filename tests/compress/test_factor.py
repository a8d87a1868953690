"""Factoring: exact where the rank allows it, best for the inputs that are seen, and nothing where it does not pay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.compress.compensate import input_grams
from autocompress.compress.factor import factor_, factored, merge_factors
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.compress.sparsify import Sparsity, sparsify_, zeros_share
from autocompress.plan import CompressionPlan
from autocompress.records import FactorFacts, ModelFacts
from autocompress.space.factors import Factored, merged_weight
from autocompress.space.layers import find_layers

SEEDED = torch.Generator().manual_seed(0)


def _product(factors: Factored) -> torch.Tensor:
    return merged_weight(factors.first.weight, factors.second.weight)


def _facts(model: nn.Module) -> ModelFacts:
    return ModelFacts(layers=tuple(replace(n, factors=FactorFacts()) for n in find_layers(model)[0]), groups=())


def test_a_matrix_of_rank_one_is_the_product_of_two_vectors():
    layer = nn.Linear(7, 5)
    layer.weight.data = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 8.0))
    factors = factored(layer, 1)
    assert (factors.first.weight.shape, factors.second.weight.shape) == ((1, 7), (5, 1))
    assert torch.allclose(_product(factors), layer.weight, atol=1e-4)
    assert torch.equal(factors.second.bias, layer.bias)
    assert factors.first.weight.norm().item() == pytest.approx(factors.second.weight.norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("layer", "rank"),
    [(nn.Linear(6, 9), 6), (nn.Conv2d(4, 5, 3, padding=1), 12), (nn.Conv2d(4, 5, 1, bias=False), 4),
     (nn.Conv1d(3, 4, 5), 3)],
)  # fmt: skip
@pytest.mark.parametrize("whitened", [False, True])
def test_at_full_rank_nothing_changes(layer, rank, whitened):
    """A 3x3 kernel with 4 inputs and 5 outputs is a matrix of 12 x 15; one axis of 5 with 3 inputs, of 3 x 20."""
    inputs = layer.weight.shape[1]
    rows = torch.randn(20, inputs, generator=SEEDED)
    factors = factored(layer, rank, rows.T @ rows / 20 if whitened else None)
    assert torch.allclose(_product(factors), layer.weight, atol=1e-5)


def test_the_plain_error_is_that_of_the_singular_values_left_out():
    layer = nn.Linear(20, 12)
    values = torch.linalg.svdvals(layer.weight)
    error = (_product(factored(layer, 5)) - layer.weight).norm()
    assert error.item() == pytest.approx(values[5:].norm().item(), rel=1e-4)


def test_inputs_that_are_always_alike_need_fewer_directions():
    """Two of eight inputs vary: two directions hold all that is ever seen, whatever the weights are."""
    layer = nn.Linear(8, 8)
    x = torch.randn(64, 2, generator=SEEDED) @ torch.randn(2, 8, generator=SEEDED)
    plain, seen = factored(layer, 2), factored(layer, 2, x.T @ x / 64)
    wanted = layer(x)
    scale = (wanted - layer.bias).norm()
    assert ((seen(x) - wanted).norm() / scale).item() < 2e-3
    assert ((plain(x) - wanted).norm() / scale).item() > 0.1


def test_a_plan_factors_where_it_pays_and_keeps_the_rest_whole():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)).eval()
    plan = CompressionPlan(rank_ratio={"0": 0.5, "2": 0.5})  # 4 outputs: even at rank 3.8
    made = factor_(model, plan, _facts(model))
    assert [type(m) for m in made] == [Factored, nn.Linear, nn.Linear]
    assert made[0].rank == 16
    with pytest.raises(ValueError, match="the plan factors '3', which cannot be"):
        factor_(model, CompressionPlan(rank_ratio={"3": 0.5}), _facts(model))


def test_factors_are_chosen_for_the_inputs_of_the_pruned_network():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    x = torch.randn(64, 16, generator=SEEDED)
    plan = CompressionPlan(rank_ratio={"2": 0.5})
    made = prune_to_plan(model, plan, _facts(model), {}, (x[:2],), samples=(x,))
    wanted = factored(model[2], 4, input_grams(model, (x,))["2"])
    assert torch.allclose(_product(made[2]), _product(wanted), atol=1e-5)
    assert isinstance(model[2], nn.Linear), "the network it is cut from stays"


def test_bits_and_zeros_of_a_layer_are_those_of_both_factors():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    factor_(model, CompressionPlan(rank_ratio={"1": 0.5}), _facts(model))
    sparsify_(model, Sparsity(share=0.5, kind="magnitude", layers=("1",)))
    settled = settle_weights_(quantize_weights_(model, {"0": 8, "1": 4}))
    assert {n: q.bits for n, q in settled.items()} == {"0": 8, "1.first": 4, "1.second": 4}
    assert settled["1.first"].scale.shape == (16,)
    assert zeros_share([model[1].first.weight, model[1].second.weight]) >= 0.5


def test_factors_are_multiplied_out_again_for_those_who_go_on_from_them():
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(16, 16, 3), nn.Linear(64, 64)).eval()
    plan = CompressionPlan(rank_ratio={"0": 0.5, "1": 0.5, "2": 0.0})
    facts = _facts(model)
    first, conv, last = facts.layers
    facts = replace(facts, layers=(first, replace(conv, factors=FactorFacts(taps=3)), last))
    whole = {name: t.clone() for name, t in model.state_dict().items()}
    made = factor_(model, plan, facts)
    merged = merge_factors(made.state_dict(), plan)
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in whole.items()}
    again = factor_(nn.Sequential(nn.Linear(64, 64), nn.Conv2d(16, 16, 3), nn.Linear(64, 64)), plan, facts)
    for index in (0, 1):
        layer = nn.Linear(64, 64) if index == 0 else nn.Conv2d(16, 16, 3)
        layer.load_state_dict({k: merged[f"{index}.{k}"] for k in ("weight", "bias")})
        assert torch.allclose(_product(factored(layer, again[index].rank)), merged[f"{index}.weight"], atol=1e-5)


def test_a_large_layer_is_factored_by_its_first_directions_alone():
    layer = nn.Linear(1100, 1200, bias=False)
    layer.weight.data = torch.randn(1200, 3, generator=SEEDED) @ torch.randn(3, 1100, generator=SEEDED)
    first, second = factored(layer, 4), factored(layer, 4)
    assert torch.allclose(_product(first), layer.weight, atol=1e-3)
    assert torch.equal(first.first.weight, second.first.weight), "the same every time"
