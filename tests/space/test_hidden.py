"""Hidden units as groups: where they stand, who reads them, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from sequences import Recurrent, inputs
from torch import nn

from autocompress.space.groups import find_groups, input_sources
from autocompress.space.hidden import find_hidden_groups
from autocompress.space.layers import count_macs, find_layers
from autocompress.space.slices import remove_slices_, silence_


def one_group(model):
    groups, skips = find_hidden_groups(model, (inputs(),))
    assert skips == []
    (group,) = groups
    return group


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("layers", "both", "reads"), [(1, False, "last"), (2, True, "mean"), (1, True, "state")])
def test_a_network_without_hidden_units_computes_what_it_does_when_nobody_reads_them(kind, layers, both, reads):
    torch.manual_seed(0)
    model = Recurrent(kind, layers=layers, both=both, reads=reads).eval()
    group = one_group(model)
    quiet = silence_(copy.deepcopy(model), group, [1, 6])
    narrow = remove_slices_(copy.deepcopy(model), group, [1, 6])
    x = inputs(7)
    with torch.no_grad():
        assert torch.allclose(narrow(x), quiet(x), atol=1e-6)
        assert not torch.allclose(narrow(x), model(x), atol=1e-4)
    assert narrow.rnn.hidden_size == 6
    assert narrow.fc.in_features == model.fc.in_features - (4 if both and reads != "state" else 2)


def test_a_unit_of_an_lstm_has_a_row_in_each_gate_and_a_column_in_what_reads_it():
    torch.manual_seed(0)
    model = Recurrent(both=True).eval()
    before = copy.deepcopy(model)
    narrow = remove_slices_(model, one_group(model), [3])
    stays = [0, 1, 2, 4, 5, 6, 7]
    rows = [gate * 8 + unit for gate in range(4) for unit in stays]
    assert torch.equal(narrow.rnn.weight_ih_l0_reverse, before.rnn.weight_ih_l0_reverse[rows])
    assert torch.equal(narrow.rnn.weight_hh_l0, before.rnn.weight_hh_l0[rows][:, stays])
    assert torch.equal(narrow.rnn.bias_hh_l0, before.rnn.bias_hh_l0[rows])
    assert torch.equal(narrow.fc.weight, before.fc.weight[:, stays + [8 + unit for unit in stays]])


class Stacked(nn.Module):
    """Two recurrent layers of their own, and two layers that read the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(6, 8, batch_first=True), nn.LSTM(8, 4, batch_first=True)
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(8, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.second(self.first(x)[0])[0]
        return self.c(self.a(y[:, -1]).relu()) + self.b(torch.cat([y.mean(1), y.amax(1)], 1))


def test_every_reader_is_found_and_no_layer_behind_them():
    torch.manual_seed(0)
    groups, skips = find_hidden_groups(Stacked().eval(), (inputs(),))
    assert skips == []
    first, second = groups
    assert first.readers() == {"first": 1, "second": 1}
    assert second.readers() == {"second": 1, "a": 1, "b": 2}


def test_what_normalises_hidden_units_keeps_them_all():
    groups, skips = find_hidden_groups(Recurrent(norm=True).eval(), (inputs(),))
    assert groups == []
    assert [(s.name, s.what) for s in skips] == [("rnn", "prune")]
    assert "a norm or the output" in skips[0].reason


def test_hidden_units_that_are_the_output_stay():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    groups, skips = find_hidden_groups(Bare().eval(), (inputs(),))
    assert groups == []
    assert len(skips) == 1


def test_a_recurrent_layer_is_counted_and_weighed_like_any_other():
    model = Recurrent(hidden=8, layers=2, both=True).eval()
    (rnn, fc), skips = find_layers(model)
    assert skips == []
    weights = 2 * 32 * (6 + 8) + 2 * 32 * (16 + 8)
    assert (rnn.kind, rnn.weights, rnn.out_channels) == ("recurrent", weights, 8)
    assert rnn.weights == rnn.out_channels * rnn.in_channels * 4 * 2  # four gates, two directions
    assert count_macs(model, (inputs(),)) == 5 * weights + 16 * 3
    groups, _ = find_groups(model, (inputs(),), round_to=2)
    assert [(g.name, g.channels, g.granule) for g in groups] == [("rnn", 8, 2)]
    # A unit is read once by its own layer, by both directions of the second in two columns, and twice by fc.
    assert input_sources(model, (inputs(),), groups) == {"rnn": {"rnn": 1 + 1 + 2}, "fc": {"rnn": 2}}
    assert fc.in_channels == 16
