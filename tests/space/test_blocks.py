"""Which blocks can be left out, told by what they compute, and which groups live inside of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.space.blocks import find_blocks, with_groups
from autocompress.space.groups import find_groups
from autocompress.zoo.models import ResNet, mobilenetv2, resnet20


def _example(*shape: int) -> tuple[Tensor]:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),)


IMAGES = _example(3, 16, 16)


def _names(model: nn.Module, example: tuple[Tensor, ...] = IMAGES, **options: tuple[str, ...]) -> list[str]:
    return [block.name for block in find_blocks(model.eval(), example, **options)]


def test_resnet20_can_lose_every_block_but_the_two_that_change_the_shape():
    blocks = find_blocks(resnet20().eval(), IMAGES)
    assert [b.name for b in blocks] == [f"layers.{n}" for n in (0, 1, 2, 4, 5, 7, 8)]
    assert blocks[0].layers == ("layers.0.conv1", "layers.0.conv2")


def test_mobilenetv2_can_lose_its_residual_blocks():
    model = mobilenetv2().eval()
    residual = [f"features.{n}" for n, m in enumerate(model.features) if getattr(m, "residual", False)]
    assert len(residual) == 6
    assert _names(model) == residual


def test_a_chain_of_convolutions_has_no_blocks():
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU()) for _ in range(3)]
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Flatten(), nn.Linear(8 * 256, 4))
    assert _names(chain) == []
    assert _names(chain, (torch.zeros(2, 3, 16, 16),)) == []  # zeros come out, but only because zeros went in


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_s_layer_is_a_block_wherever_it_has_its_norms(norm_first):
    stack = [nn.TransformerEncoderLayer(16, 2, 32, norm_first=norm_first, batch_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Linear(6, 16), *stack, nn.Flatten(), nn.Linear(80, 4))
    assert _names(model, _example(5, 6)) == ["1", "2"]


def test_what_gives_something_normalised_is_a_block_only_if_that_is_its_input():

    class Replaced(nn.Module):
        def __init__(self, *, shortcut: bool) -> None:
            super().__init__()
            self.inner, self.norm, self.shortcut = nn.Linear(16, 16), nn.LayerNorm(16), shortcut

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.inner(x)) if self.shortcut else self.norm(self.inner(x))

    rows = [Replaced(shortcut=True), Replaced(shortcut=False), Replaced(shortcut=True)]
    model = nn.Sequential(nn.Linear(6, 16), *rows, nn.Flatten(), nn.Linear(80, 4))
    assert _names(model, _example(5, 6)) == ["1", "3"]


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
        self.embed = nn.Linear(6, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.encoder(self.embed(x)).mean(1))
        return out


def test_what_the_forward_insists_on_is_no_block():
    # nn.TransformerEncoder reads attributes of its first layer, and calls all of them with further arguments
    assert _names(_Encoder(), _example(5, 6)) == ["encoder.layers.1", "encoder.layers.2"]


class _Residual(nn.Module):
    """x + conv(x), with what comes after; parameters may be lent from another one."""

    def __init__(self, after: nn.Module | None = None, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Conv2d(4, 4, 3, padding=1)
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(x + self.inner(x))
        return out


def _net(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Flatten(), nn.Linear(4 * 14 * 14, 4))


def test_a_block_that_ends_in_an_activation_needs_an_input_that_has_passed_one():
    assert _names(_net(_Residual(nn.ReLU()), _Residual(nn.ReLU()))) == ["2"]  # the first reads a bare convolution
    assert _names(_net(nn.ReLU6(), _Residual(nn.ReLU6()))) == ["2"]
    assert _names(_net(nn.ReLU(), _Residual(nn.Sigmoid()))) == []


def test_single_blocks_are_preferred_to_a_row_of_them():
    assert _names(_net(nn.Sequential(_Residual(), _Residual()))) == ["1.0", "1.1"]


class _Outer(nn.Module):
    """Residual around two layers, one of which is a residual block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = _Residual(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.last(self.part(x))
        return out


def test_the_innermost_block_is_taken():
    assert _names(_net(_Outer())) == ["1.part"]


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 4, 3), _Residual(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.block(self.stem(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def test_a_block_that_runs_twice_or_shares_a_layer_is_none():
    assert _names(_Twice()) == []
    shared = nn.Conv2d(4, 4, 1)
    assert _names(_net(_Residual(inner=shared), _Residual(inner=shared), _Residual())) == ["3"]
    lender, borrower = _Residual(), _Residual()
    borrower.inner.weight = lender.inner.weight
    assert _names(_net(lender, borrower, _Residual())) == ["3"]


def test_a_skipped_layer_keeps_its_block():
    assert _names(resnet20(), skip=("layers.4.conv2",)) == [f"layers.{n}" for n in (0, 1, 2, 5, 7, 8)]
    assert "layers.5" not in _names(resnet20(), skip=("layers.5",))


def test_tiny_activations_are_not_taken_for_zero():
    model = _net(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), _Residual())
    with torch.no_grad():
        model[0].weight.mul_(1e-9)
        model[0].bias.zero_()
    assert _names(model) == ["2"]


def test_finding_blocks_leaves_the_model_as_it_was():
    model = resnet20().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    find_blocks(model, IMAGES)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_inner_group_is_the_block_s_and_the_stream_is_not():
    model = ResNet(widths=(8, 16), depths=(2, 2)).eval()
    groups, _ = find_groups(model, IMAGES)
    blocks = with_groups(model, IMAGES, find_blocks(model, IMAGES), groups)
    assert [(b.name, b.groups) for b in blocks] == [
        ("layers.0", ("layers.0.conv1",)), ("layers.1", ("layers.1.conv1",)), ("layers.3", ("layers.3.conv1",))
    ]  # fmt: skip


class _Embedded(nn.Module):
    """The stream comes from an embedding: all linear layers that write to it are in the one block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.block = _Mlp()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.block(self.embed(x)).mean(1))
        return out


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.relu(self.inner(x)))


def test_a_stream_outlives_the_only_block_that_adds_to_it():
    model, tokens = _Embedded().eval(), (torch.randint(0, 12, (2, 5)),)
    groups, _ = find_groups(model, tokens)
    assert {g.layers for g in groups} == {("block.inner",), ("block.outer",)}
    assert with_groups(model, tokens, find_blocks(model, tokens), groups)[0].groups == ("block.inner",)
