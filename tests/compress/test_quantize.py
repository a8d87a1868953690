"""Rounding weights: scales, integers, and the gradients that pass through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.compress.quantize import (
    FakeQuantize,
    float_state,
    limit_for,
    quantize_weights_,
    search_scale,
    settle_weights_,
)


def _error(weight, scale, bits):
    limit = limit_for(bits)
    return ((weight / scale[:, None]).round().clamp(-limit, limit) * scale[:, None] - weight).pow(2).sum(1)


def test_the_largest_integer_leaves_room_for_both_signs():
    assert [limit_for(b) for b in (2, 3, 4, 8)] == [1, 3, 7, 127]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_searched_scale_beats_the_largest_magnitude(bits):
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    plain = weight.abs().amax(1) / limit_for(bits)
    found = search_scale(weight, bits)
    assert (_error(weight, found, bits) <= _error(weight, plain, bits) * (1 + 1e-6)).all()
    assert _error(weight, found, bits).sum() < 0.9 * _error(weight, plain, bits).sum()


@given(st.sampled_from((2, 3, 4, 8)), st.integers(0, 10**6), st.floats(1e-4, 1e3))
def test_a_weight_that_can_be_represented_comes_back_exactly(bits, seed, scale):
    limit = limit_for(bits)
    integers = torch.randint(-limit, limit + 1, (3, 9), generator=torch.Generator().manual_seed(seed))
    integers[:, 0] = limit
    weight = integers * scale
    fake = FakeQuantize(weight, bits)
    assert torch.equal(fake.quantize(weight).integers, integers.to(torch.int8))
    assert torch.allclose(fake(weight), weight, rtol=1e-5)


def test_zero_stays_zero():
    weight = torch.tensor([[0.0, 1.0, -0.4]])
    quantized = FakeQuantize(weight, 4).quantize(weight)
    assert quantized.integers[0, 0] == 0
    assert quantized.dequantize()[0, 0] == 0


def test_a_channel_of_zeros_has_scale_one():
    weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    fake = FakeQuantize(weight, 4)
    assert fake.log_scale[0] == 0
    assert torch.equal(fake.quantize(weight).integers, torch.tensor([[0, 0], [7, -7]], dtype=torch.int8))


@pytest.mark.parametrize("magnitude", [1e-10, 1e-15, 1e-30, 1e-44])
def test_tiny_weights_stay_finite(magnitude):
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[magnitude, -magnitude]]))
    model = nn.Sequential(layer)
    quantized = settle_weights_(quantize_weights_(model, {"0": 4}))["0"]
    assert (quantized.scale > 0).all()
    assert torch.allclose(layer.weight, torch.tensor([[magnitude, -magnitude]]), rtol=1e-4, atol=1e-17)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[1, 0] = value
    with pytest.raises(ValueError, match="weight of '0' is not finite"):
        quantize_weights_(model, {"0": 4})


def test_weights_that_diverge_under_rounding_are_refused_when_they_are_settled():
    model = quantize_weights_(nn.Sequential(nn.Linear(2, 2)), {"0": 4})
    with torch.no_grad():
        model[0].parametrizations.weight.original[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight of '0' is not finite"):
        settle_weights_(model)


def test_gradients_pass_straight_through_to_weight_and_scale():
    # limit 1: 0.4 rounds to 0, 0.6 to 1, 5.0 is clipped to 1
    weight = torch.tensor([[0.4, 0.6, 5.0]], requires_grad=True)
    fake = FakeQuantize(weight, 2)
    with torch.no_grad():
        fake.log_scale.zero_()
    out = fake(weight)
    assert torch.equal(out.detach(), torch.tensor([[0.0, 1.0, 1.0]]))
    out.sum().backward()
    assert torch.equal(weight.grad, torch.tensor([[1.0, 1.0, 0.0]]))
    # d out / d log s = s (round(w / s) - w / s) inside of the range, s * limit outside: -0.4 + 0.4 + 1
    assert torch.allclose(fake.log_scale.grad, torch.tensor([1.0]))


def test_settled_weights_are_the_integers_times_the_scale(tiny_model):
    settled = settle_weights_(quantize_weights_(tiny_model, {"conv1": 3, "conv2": 8, "fc": 16}))
    assert {n: q.bits for n, q in settled.items()} == {"conv1": 3, "conv2": 8}
    for name, quantized in settled.items():
        column = quantized.scale.reshape(-1, 1, 1, 1)
        assert torch.equal(tiny_model.get_submodule(name).weight, quantized.integers.float() * column)
        assert quantized.integers.abs().max() <= limit_for(quantized.bits)
    assert not any("parametrizations" in k for k in tiny_model.state_dict())


def test_a_settled_network_computes_what_the_rounded_one_did(tiny_model):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    quantize_weights_(tiny_model, dict.fromkeys(("conv1", "conv2", "fc"), 4))
    before = tiny_model(x)
    settle_weights_(tiny_model)
    assert torch.allclose(tiny_model(x), before, atol=1e-6)


def test_the_float_weights_behind_the_rounding_are_kept_under_their_plain_names(tiny_model):
    plain = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    state = float_state(quantize_weights_(tiny_model, {"conv1": 2}))
    assert set(state) == set(plain)
    assert torch.equal(state["conv1.weight"], plain["conv1.weight"])


def test_an_unknown_layer_is_refused(tiny_model):
    with pytest.raises(ValueError, match="'conv9', which is not a layer"):
        quantize_weights_(tiny_model, {"conv9": 4})
