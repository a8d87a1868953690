"""Rounding that makes up for its own errors: by later weights, by what a layer is given now, and by the bias."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compress.feedback import aimed, feedback_rounded, round_with_feedback_
from autocompress.compress.quantize import float_state, quantize_weights_, rounding_state, settle_weights_
from autocompress.compress.sparsify import Sparsity, sparsify_


def _whole(column: torch.Tensor, _: int) -> torch.Tensor:
    return column.round()


def test_the_second_of_two_equal_inputs_takes_back_the_error_of_the_first():
    """0.4 + 0.4 of the same input: the nearest are 0 + 0, with feedback they are 0 + 1, which is nearer to 0.8."""
    gram = torch.ones(1, 2, 2) + 1e-3 * torch.eye(2)
    assert feedback_rounded(torch.tensor([[[0.4, 0.4]]]), gram, _whole).tolist() == [[[0.0, 1.0]]]


def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_the_nearest():
    weight = torch.tensor([[[0.4, 0.6, -1.2]], [[2.5001, -0.4, 0.1]]])
    assert feedback_rounded(weight, torch.eye(3).repeat(2, 1, 1), _whole).tolist() == [[[0, 1, -1]], [[3, 0, 0]]]


def test_errors_reach_columns_beyond_a_block_and_groups_stay_apart():
    """Of 40 equal inputs of 0.1 four must become 1 in the first group; in the second inputs are independent."""
    gram = torch.stack([torch.ones(40, 40) + 1e-4 * torch.eye(40), torch.eye(40)])
    rounded = feedback_rounded(torch.full((2, 1, 40), 0.1), gram, _whole)
    assert rounded.sum(-1).flatten().tolist() == [4.0, 0.0]
    assert rounded[0, 0, 32:].sum() > 0


def test_a_layer_that_is_given_half_of_what_it_was_aims_at_nearly_twice_its_weights():
    """The inputs' moments are 1/4 and 1/2; with the ridge of a tenth of 1/4 that is 0.525 / 0.275."""
    wanted = torch.tensor([[[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]])
    weight = torch.tensor([[[1.0, -2.0, 0.5]]])
    assert torch.allclose(aimed(weight, wanted, wanted / 2), weight * 21 / 11)
    assert torch.allclose(aimed(weight, wanted, wanted), weight)


def test_the_bias_takes_the_mean_of_what_rounding_lost():
    """1.0 and 0.3 at 2 bits are 1 and 0 times a scale; the second input is 2 on average, so 0.6 was lost."""
    dense = nn.Sequential(nn.Linear(2, 1)).eval()
    with torch.no_grad():
        dense[0].weight.copy_(torch.tensor([[1.0, 0.3]]))
        dense[0].bias.fill_(5.0)
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, 3.0], [-1.0, 3.0]])
    rounded = quantize_weights_(copy.deepcopy(dense), {"0": 2})
    round_with_feedback_(rounded, dense, (x,))
    assert rounded[0].weight.detach().tolist()[0] == pytest.approx([1.0, 0.0])
    assert rounded[0].bias.item() == pytest.approx(5.6)


class Plain(nn.Module):
    """No batch norm: a convolution, a grouped one, one over time, an LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, stride=2, bias=False)
        self.time = nn.Conv1d(8, 8, 2, dilation=2)
        self.rnn = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.grouped(torch.relu(self.conv(x)))).flatten(2)
        steps, _ = self.rnn(torch.relu(self.time(x)).transpose(1, 2))
        out: torch.Tensor = self.fc(steps.mean(1))
        return out


LAYERS = ("conv", "grouped", "time", "rnn", "fc")


@pytest.mark.parametrize("levels", ["uniform", "codebook"])
def test_outputs_come_nearer_and_the_weights_are_those_that_are_stored(levels):
    torch.manual_seed(0)
    dense, x = Plain().eval(), torch.rand(64, 1, 8, 8)
    bits = dict.fromkeys(LAYERS, 3)
    rounded = quantize_weights_(copy.deepcopy(dense), bits, levels)
    with torch.no_grad():
        wanted = dense(x)
        before = (rounded(x) - wanted).square().mean()
        round_with_feedback_(rounded, dense, (x,))
        after = rounded(x)
        assert (after - wanted).square().mean() < 0.2 * before
        assert torch.allclose(after.mean(0), wanted.mean(0), atol=1e-5)
        again = Plain().eval()
        again.load_state_dict(float_state(rounded))
        quantize_weights_(again, bits, levels)
        again.load_state_dict(rounding_state(rounded), strict=False)
        assert torch.allclose(again(x), after, atol=1e-6)
        settle_weights_(rounded)
        assert torch.allclose(rounded(x), after, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in rounded.modules())


def test_evenly_spaced_weights_stay_as_near_to_where_they_were_as_they_can():
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(16, 8)).eval(), torch.randn(64, 16) @ torch.randn(16, 16)
    rounded = quantize_weights_(copy.deepcopy(dense), {"0": 3})
    fake = rounded[0].parametrizations.weight[0]
    scale = fake.log_scale.detach().exp()[:, None]
    nearest = fake.quantize(dense[0].weight).integers
    round_with_feedback_(rounded, dense, (x,))
    moved = rounded[0].parametrizations.weight.original.detach()
    same = fake.quantize(moved).integers == nearest
    assert 0.1 < same.float().mean() < 0.95
    inside = (dense[0].weight.detach() / scale - nearest).abs() < 0.45
    assert torch.equal(moved[same & inside], dense[0].weight.detach()[same & inside])


def test_zeroed_weights_stay_zero():
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(16, 8)).eval(), torch.randn(64, 16) @ torch.randn(16, 16)
    sparsify_(dense, Sparsity(share=0.5, kind="magnitude", layers=("0",)))
    zero = dense[0].weight.detach() == 0
    rounded = quantize_weights_(copy.deepcopy(dense), {"0": 4})
    round_with_feedback_(rounded, dense, (x,))
    assert zero.sum() == 64
    assert (rounded[0].weight.detach()[zero] == 0).all()
    assert (rounded[0].weight.detach()[~zero] != 0).any()


def test_a_layer_that_is_used_twice_and_layers_in_float_are_left_as_they_are():
    """The first use decides: the second one neither rounds nor corrects again."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.outer(self.inner(torch.relu(self.inner(x))))
            return out

    torch.manual_seed(0)
    dense, x = Twice().eval(), torch.randn(32, 4)
    rounded = quantize_weights_(copy.deepcopy(dense), {"inner": 3})
    round_with_feedback_(rounded, dense, (x,))
    with torch.no_grad():
        assert torch.allclose(rounded.inner(x).mean(0), dense.inner(x).mean(0), atol=1e-6)
    assert torch.equal(rounded.outer.weight, dense.outer.weight)
    assert torch.equal(rounded.outer.bias, dense.outer.bias)
