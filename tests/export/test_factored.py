"""A graph whose layers are two factors: split from the whole one, it is the file that a trace would give."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from integers import EXACT_BITS
from torch import Tensor, nn

from autocompress.compress.prune import prune_to_plan
from autocompress.compress.quantize import quantize_weights_, settle_weights_
from autocompress.export import artifact as artifact_module
from autocompress.export.artifact import Exporter, emit, make_exporter
from autocompress.export.check import check_artifact
from autocompress.plan import CompressionPlan
from autocompress.records import ModelFacts
from autocompress.space.factors import find_factors
from autocompress.space.groups import find_groups
from autocompress.space.layers import find_layers


class Mixed(nn.Module):
    """Strided and pointwise convolutions with batch norms, a linear layer over places and one over features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 32, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.mix = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.point(torch.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.fc(torch.relu(self.mix(x.flatten(2).transpose(1, 2))).mean(1))
        return out


SAMPLES = (torch.randn(48, 8, 8, 8, generator=torch.Generator().manual_seed(1)),)
EXAMPLE = (SAMPLES[0][:2],)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed()
        for norm in (model.bn1, model.bn2):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
        return model.eval()


@pytest.fixture(scope="module")
def exporter(dense) -> Exporter:
    return make_exporter(dense, SAMPLES)


@pytest.fixture(scope="module")
def facts(dense) -> ModelFacts:
    layers, _ = find_layers(dense)
    factors, _ = find_factors(dense, EXAMPLE, layers)
    groups, _ = find_groups(dense, EXAMPLE, round_to=4)
    return ModelFacts(layers=tuple(replace(n, factors=factors.get(n.name)) for n in layers), groups=tuple(groups))


@pytest.fixture
def traces(monkeypatch) -> list[int]:
    """One entry per network that is traced."""
    found: list[int] = []
    original = artifact_module.trace_skeleton
    monkeypatch.setattr(artifact_module, "trace_skeleton", lambda *a: found.append(1) or original(*a))
    return found


def _network(dense: nn.Module, facts: ModelFacts, plan: CompressionPlan) -> tuple[nn.Module, dict]:
    scores = {g.name: torch.arange(float(g.channels)) for g in facts.groups}
    network = prune_to_plan(dense, plan, facts, scores, EXAMPLE, samples=SAMPLES)
    return network, settle_weights_(quantize_weights_(network, plan.weight_bits))


@pytest.mark.parametrize("activations", ["float", "uint8", "dynamic"])
def test_factors_widths_and_mixed_bits_ship_together_without_another_trace(dense, exporter, facts, activations, traces):
    plan = CompressionPlan(
        prune_ratio={"point": 0.25},
        rank_ratio=dict.fromkeys(("conv1", "point", "mix", "fc"), 0.5),
        weight_bits={
            "conv1": 4,
            "point": EXACT_BITS,
            "mix": EXACT_BITS,
            "fc": 16 if activations == "float" else EXACT_BITS,
        },
        activations=activations,
    )
    network, integers = _network(dense, facts, plan)
    names = [f"{n}.{part}" for n in ("conv1", "point", "mix", "fc") for part in ("first", "second")]
    assert [n for n in names if n in integers] == names[: 6 if activations == "float" else 8]
    sketch = emit(exporter, network, plan, integers, trained=False)
    data = emit(exporter, network, plan, integers, trained=True)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert check_artifact(data, network, (SAMPLES[0][:9],), exact=activations == "float") < 0.1
    assert len(sketch) == pytest.approx(len(data), abs=64)
    assert traces == []


def test_the_split_file_is_the_traced_one(dense, exporter, facts, traces):
    plan = CompressionPlan(rank_ratio={"conv1": 0.5, "mix": 0.5})
    network, _ = _network(dense, facts, plan)
    split = emit(exporter, network, plan, {}, trained=True)
    assert traces == []
    anew = emit(make_exporter(network, SAMPLES), network, CompressionPlan(), {}, trained=True)
    nodes = [sorted(n.op_type for n in onnx.load_from_string(data).graph.node) for data in (split, anew)]
    assert nodes[0] == nodes[1]
    assert len(split) == pytest.approx(len(anew), abs=64)


def test_the_file_is_smaller_by_the_weights_that_are_saved_but_for_a_node(dense, exporter, facts):
    whole = emit(exporter, dense, CompressionPlan(), {}, trained=True)
    plan = CompressionPlan(rank_ratio={"mix": 0.5})  # 32 x 32 to 2 x 8 x 32
    network, _ = _network(dense, facts, plan)
    saved = len(whole) - len(emit(exporter, network, plan, {}, trained=True))
    assert 4 * (32 * 32 - 2 * 8 * 32) - 150 < saved < 4 * (32 * 32 - 2 * 8 * 32)


def test_where_the_graph_has_no_product_it_is_traced(dense, exporter, facts, monkeypatch, traces):
    monkeypatch.setattr(artifact_module, "with_factors", lambda *_: None)
    plan = CompressionPlan(rank_ratio={"point": 0.5})
    network, _ = _network(dense, facts, plan)
    data = emit(replace(exporter, retraced={}), network, plan, {}, trained=True)
    assert traces == [1]
    check_artifact(data, network, (SAMPLES[0][:9],), exact=True)


@pytest.mark.parametrize("retraced", [False, True])
def test_what_is_a_mask_is_decided_alike_for_the_timed_and_the_shipped_file(
    dense, exporter, facts, monkeypatch, traces, retraced
):
    """By the dense network's ranges, or by those of the first network that was traced."""
    asked = []
    original = artifact_module.masking_nodes
    monkeypatch.setattr(artifact_module, "masking_nodes", lambda m, r, w: asked.append(r) or original(m, r, w))
    if retraced:
        monkeypatch.setattr(artifact_module, "with_factors", lambda *_: None)
    own = replace(exporter, retraced={})
    plan = CompressionPlan(rank_ratio={"mix": 0.5}, weight_bits={"mix": 8, "fc": 8}, activations="uint8")
    network, integers = _network(dense, facts, plan)
    for trained in (False, True):
        emit(own, network, plan, integers, trained=trained)
    assert asked[0] is asked[1]
    assert (asked[0] is exporter.ranges) is not retraced
    assert traces == [1] * retraced
