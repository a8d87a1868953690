"""Removed channels that the kept ones can stand in for are folded into the next layer exactly."""

import copy

import torch
from tiny import TinyNet
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from autocompress.compress.compensate import compensate_, input_grams, mark_channels_, read_marks
from autocompress.compress.prune import prune, remove_channels_
from autocompress.recover.damage import reestimate_
from autocompress.space.groups import find_groups


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()


def _pruned(dense: nn.Module, remove: list[int], example: torch.Tensor) -> tuple[nn.Module, dict]:
    pruned = remove_channels_(copy.deepcopy(dense), (example,), {"0": remove})
    marked = remove_channels_(mark_channels_(copy.deepcopy(dense)), (example,), {"0": remove})
    return pruned, read_marks(marked, dense)


def test_marks_tell_which_outputs_and_inputs_were_kept():
    example = torch.randn(2, 2, 5, 5)
    _, kept = _pruned(_net(), [1, 2], example)
    assert kept["0"][0].tolist() == [0, 3]
    assert kept["0"][1].tolist() == [0, 1]
    assert kept["2"][0].tolist() == [0, 1, 2]
    assert kept["2"][1].tolist() == [0, 3]


def test_a_channel_that_copies_another_is_removed_at_no_loss():
    dense, example = _net(), torch.randn(16, 2, 9, 9)
    with torch.no_grad():
        dense[0].weight[3], dense[0].bias[3] = dense[0].weight[1], dense[0].bias[1]
        wanted = dense(example)
    pruned, kept = _pruned(dense, [3], example)
    with torch.no_grad():
        before = (pruned(example) - wanted).abs().max().item()
        compensate_(pruned, dense, kept, input_grams(dense, (example,)))
        after = (pruned(example) - wanted).abs().max().item()
    assert before > 0.05
    assert after < before / 20  # the ridge keeps a little of the error


def test_compensation_lowers_the_squared_error_of_the_next_layer():
    dense, example = _net(), torch.randn(64, 2, 9, 9)
    pruned, kept = _pruned(dense, [0, 2], example)
    with torch.no_grad():
        wanted = dense(example)
        before = (pruned(example) - wanted).pow(2).mean().item()
        compensate_(pruned, dense, kept, input_grams(dense, (example,)))
        assert (pruned(example) - wanted).pow(2).mean().item() < before


def test_the_gram_matrix_is_the_mean_outer_product_of_the_inputs():
    layer = nn.Sequential(nn.Linear(2, 1))
    samples = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert torch.allclose(input_grams(layer, (samples,))["0"], torch.tensor([[5.0, 1.0], [1.0, 2.0]]))


def test_layers_that_lost_no_input_keep_their_weights():
    dense, example = _net(), torch.randn(4, 2, 5, 5)
    pruned, kept = _pruned(dense, [1], example)
    first = pruned[0].weight.clone()
    compensate_(pruned, dense, kept, input_grams(dense, (example,)))
    assert torch.equal(pruned[0].weight, first)


def test_the_gram_matrix_of_a_layer_that_is_used_twice_is_the_mean_over_both():
    """It doubles its inputs, so the second time they are 2 and 4."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = 2 * torch.eye(2)
    found = input_grams(nn.Sequential(layer, layer), (torch.tensor([[1.0, 2.0]]),))
    assert torch.allclose(found["0"], torch.tensor([[2.5, 5.0], [5.0, 10.0]]))


def test_folding_keeps_most_of_the_accuracy_that_cutting_loses(tiny_data):
    """Nothing is trained after half of the channels are gone; norms are estimated anew either way."""
    (images, targets), (others, wanted) = tiny_data["train"], tiny_data["test"]
    torch.manual_seed(0)
    model = TinyNet(channels=16)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    model.eval()
    groups, _ = find_groups(model, (images[:2],), round_to=2)
    scores = {g.name: torch.arange(float(g.channels)) for g in groups}
    halves = {g.name: g.channels // 2 for g in groups}

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return (network(others).argmax(1) == wanted).float().mean().item()

    grams = input_grams(model, (images,))
    folded, cut = (
        accuracy(reestimate_(prune(model, halves, scores, (images[:2],), grams=known), (images,)))
        for known in (grams, None)
    )
    assert folded > cut + 0.1
    assert accuracy(model) - folded < (accuracy(model) - cut) / 2


def test_a_layer_whose_weight_is_computed_keeps_it():
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 1)).eval()
    assert set(input_grams(model, (torch.ones(1, 2),))) == {"1"}
    assert set(read_marks(mark_channels_(copy.deepcopy(model)), model)) == {"1"}
