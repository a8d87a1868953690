"""Attention as plain layers: what is recognised, that nothing changes, and heads as groups."""

from __future__ import annotations

import copy

import pytest
import torch
from sequences import Attending, Joined, Odd, Separate, encoder, inputs
from torch import nn

from autocompress.compress.prune import remove_channels_
from autocompress.space.attention import HeadedAttention, find_head_groups, open_attention_
from autocompress.space.groups import find_groups, input_sources
from autocompress.space.layers import find_layers
from autocompress.space.slices import remove_slices_, silence_

KINDS = {
    "joined": lambda: Joined(8, 4),
    "interleaved": lambda: Joined(8, 4, interleaved=True),
    "separate, causal": lambda: Separate(8, 4),
}


@pytest.fixture(params=list(KINDS))
def model(request):
    torch.manual_seed(0)
    return Attending(KINDS[request.param]()).eval()


def test_hand_written_attention_is_recognised_by_what_it_computes(model):
    x = inputs()
    names, wanted = {n for n, _ in model.named_parameters()}, model(x)
    assert open_attention_(model, (x,)) == []
    assert isinstance(model.attention, HeadedAttention)
    assert {n for n, _ in model.named_parameters()} == names
    assert torch.allclose(model(x), wanted, atol=1e-6)
    assert (model.attention.num_heads, model.attention.head_dim) == (4, 2)


def test_a_network_without_a_head_computes_what_it_does_when_nobody_reads_it(model):
    x = inputs(7)
    open_attention_(model, (x,))
    (group,) = find_head_groups(model)
    assert (group.name, group.channels, group.unit) == ("attention", 8, 2)
    gone = [2, 3]  # the second head
    quiet = silence_(copy.deepcopy(model), group, gone)
    narrow = remove_slices_(copy.deepcopy(model), group, gone)
    with torch.no_grad():
        assert torch.allclose(narrow(x), quiet(x), atol=1e-6)
        assert not torch.allclose(narrow(x), model(x), atol=1e-4)
    assert narrow.attention.num_heads == 3


def test_what_only_looks_like_attention_is_left_as_it_is():
    model = Attending(Odd(8, 4)).eval()
    assert open_attention_(model, (inputs(),)) == []
    assert type(model.attention) is Odd


def test_the_encoder_of_torch_is_rewritten_around_its_fused_kernel():
    torch.manual_seed(0)
    model, x = encoder().eval(), inputs(4, 8)
    with torch.no_grad():
        wanted = model(x)
        assert open_attention_(model, (x,)) == []
        assert torch.allclose(model(x), wanted, atol=1e-5)
    layers, skips = find_layers(model)
    assert skips == []
    assert [n.name for n in layers][:2] == ["0.layers.0.self_attn.in_proj", "0.layers.0.self_attn.out_proj"]
    groups, _ = find_groups(model, (x,), round_to=2)
    heads = [g for g in groups if g.name.endswith("self_attn")]
    assert [(g.channels, g.granule, g.layers) for g in heads] == [
        (8, 2, (f"0.layers.{i}.self_attn.in_proj",)) for i in range(2)
    ]
    assert [g.name for g in groups if g.name.endswith("linear1")] == ["0.layers.0.linear1", "0.layers.1.linear1"]
    sources = input_sources(model, (x,), groups)
    assert sources["0.layers.1.self_attn.out_proj"]["0.layers.1.self_attn"] == 1


def test_masks_mean_what_they_mean_to_torch():
    torch.manual_seed(0)
    torch_layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
    ours = copy.deepcopy(torch_layer)
    x = inputs(2, 8)
    open_attention_(wrapped := nn.Sequential(ours), (x,))
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    causal = torch.full((5, 5), -torch.inf).triu(1)
    assert isinstance(wrapped[0].self_attn, HeadedAttention)
    for masks in ({"src_key_padding_mask": padding}, {"src_mask": causal}):
        assert torch.allclose(ours(x, **masks), torch_layer(x, **masks), atol=1e-5)


def test_attention_with_the_batch_second_stays_and_says_why():
    model = encoder(batch_first=False).eval()
    skips = open_attention_(model, (inputs(4, 8),))
    assert [(s.name, s.what) for s in skips] == [(f"0.layers.{i}.self_attn", "prune") for i in range(2)]
    assert "no plain self-attention with the batch first" in skips[0].reason


def test_heads_go_as_a_whole_even_if_asked_for_channel_by_channel():
    torch.manual_seed(0)
    model, x = Attending(Joined(8, 4)).eval(), inputs()
    open_attention_(model, (x,))
    before = copy.deepcopy(model)
    remove_channels_(model, (x,), {"attention": [0, 4, 5, 7]})  # all of the third head, and two halves
    stays = [2, 3, 6, 7]  # of halves the first goes
    rows = [part * 8 + c for part in range(3) for c in stays]
    assert torch.equal(model.attention.qkv.weight, before.attention.qkv.weight[rows])
    assert torch.equal(model.attention.proj.weight, before.attention.proj.weight[:, stays])
    assert model.attention.qkv.out_features == 12
