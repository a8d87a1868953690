"""Networks that nobody here wrote go through the whole chain."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.fold import fold_, unfold_
from autocompress.compress.importance import score_channels
from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export.artifact import emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.recover.damage import reestimate_
from autocompress.space.attention import open_attention_
from autocompress.space.groups import find_groups
from autocompress.space.layers import find_layers
from autocompress.space.search_space import width_after

pytestmark = pytest.mark.slow

# name, image size, groups that can be pruned, arguments
NETWORKS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("resnet18", 64, 12, {}),
    ("mobilenet_v2", 64, 25, {}),
    ("shufflenet_v2_x0_5", 64, 0, {}),
    ("squeezenet1_1", 64, 25, {}),
    ("vgg11_bn", 32, 10, {}),
    ("densenet121", 64, 120, {}),
    ("efficientnet_b0", 64, 40, {}),
    ("vit_b_16", 32, 24, {"image_size": 32}),  # heads and hidden widths
]


def _classifier(name: str, size: int, arguments: dict[str, Any]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **arguments).eval()
    samples = (torch.randn(8, 3, size, size),)
    open_attention_(model, tuple(t[:2] for t in samples))
    return model, samples


def _compressed_sizes(model: nn.Module, samples: tuple[Tensor, ...], groups_expected: int) -> dict[str, int]:
    example = tuple(t[:2] for t in samples)
    layers, _ = find_layers(model)
    groups, skips = find_groups(model, example)
    assert len(groups) == groups_expected, skips
    targets = torch.arange(len(example[0])) % 10
    scores = score_channels(model, groups, "taylor", [(example, targets)], F.cross_entropy, seed=0)
    exporter = make_exporter(model, samples)
    sizes = {}
    for ratio, bits, activations in ((0.5, 4, "float"), (0.5, 4, "uint8"), (0.0, 8, "uint8")):
        plan = CompressionPlan(
            prune_ratio={g.name: ratio for g in groups},
            weight_bits={n.name: bits for n in layers},
            activations=activations,  # type: ignore[arg-type]
        )
        network = prune_to_plan(model, plan, ModelFacts(layers=(), groups=tuple(groups)), scores, example)
        for group in groups:
            for layer in group.layers:
                before, after = (m.get_submodule(layer).weight.shape[0] for m in (model, network))
                assert after == before // group.channels * width_after(group, ratio), layer
        integers = settle_weights_(quantize_weights_(network, plan.weight_bits))
        data = emit(exporter, network, plan, integers, trained=True)
        distance = check_artifact(data, network, samples, exact=activations == "float")
        assert distance < (1e-3 if activations == "float" else 0.1)
        assert not onnx.load_from_string(data).graph.value_info
        sizes[f"{ratio} {bits} {activations}"] = len(data)
    return sizes


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "size", "groups", "arguments"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_a_classifier_is_pruned_rounded_and_shipped(name, size, groups, arguments):
    model, samples = _classifier(name, size, arguments)
    dense = 4 * sum(p.numel() for p in model.parameters())
    sizes = _compressed_sizes(model, samples, groups)
    assert sizes["0.0 8 uint8"] < dense * 0.3
    assert sizes["0.5 4 uint8"] < dense * 0.17
    assert sizes["0.5 4 float"] < dense * 0.6


# name, image size, batch norms that come straight after a layer, all batch norms
NORMED = [
    ("resnet18", 64, 20, 20),
    ("mobilenet_v2", 64, 52, 52),
    ("shufflenet_v2_x0_5", 64, 56, 56),
    ("vgg11_bn", 32, 8, 8),
    ("densenet121", 64, 59, 121),
    ("efficientnet_b0", 64, 49, 49),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "size", "folded", "norms"), NORMED, ids=[n[0] for n in NORMED])
def test_a_classifier_trains_without_its_norms_and_gets_them_back(name, size, folded, norms):
    model, samples = _classifier(name, size, {})
    names, before = list(model.state_dict()), _count(model, nn.BatchNorm2d)
    exporter = make_exporter(model, samples)
    reestimate_(model, samples)
    wanted = model(*samples).detach()
    gone = fold_(model, exporter.pairs)
    assert (len(gone), before) == (folded, norms)
    assert _count(model, nn.BatchNorm2d) == norms - folded
    assert (model(*samples) - wanted).abs().max() < 1e-3 * wanted.abs().max()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(*samples), torch.arange(8)).backward()
        optimizer.step()
    trained = model(*samples).detach()
    assert not torch.equal(trained, wanted)
    unfold_(model, gone, samples)
    assert list(model.state_dict()) == names
    assert (model(*samples) - trained).abs().max() < 1e-3 * trained.abs().max()
    data = emit(exporter, model, CompressionPlan(), settle_weights_(model), trained=True)
    assert check_artifact(data, model, samples, exact=True) < 1e-3


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in model.modules())
