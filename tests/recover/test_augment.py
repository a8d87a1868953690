"""Changed training data: afresh in every batch, or in fixed views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.recover.augment import Views, augment
from autocompress.recover.read import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_augmentation_gives_back_the_same_tensor_and_draws_nothing() -> None:
    images, source = torch.rand(2, 1, 8, 8), generator()
    assert augment(images, "none", source) is images
    assert torch.equal(source.get_state(), generator().get_state())


def test_hflip_mirrors_about_half_of_the_images_and_no_others() -> None:
    images = torch.rand(1000, 2, 3, 4)
    out = augment(images, "hflip", generator())
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 440 < int(mirrored.sum()) < 560


@pytest.mark.parametrize(("side", "pad"), [(32, 4), (28, 3), (8, 1), (5, 1)])
def test_shift_is_a_crop_of_the_padded_image(side: int, pad: int) -> None:
    images = torch.rand(400, 2, side, side) + 1
    out = augment(images, "shift", generator())
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    offsets = set()
    for image, around in zip(out, padded, strict=True):
        # naive oracle: exactly one window of the padded image is the result, the same for all channels
        found = [
            (i, j)
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
            if torch.equal(image, around[:, i : i + side, j : j + side])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 0.95 * (2 * pad + 1) ** 2
    assert out.is_contiguous()


def test_hflip_and_shift_work_together_and_on_bytes() -> None:
    images = torch.randint(1, 255, (64, 1, 8, 8), dtype=torch.uint8)
    before = images.clone()
    out = augment(images, "hflip+shift", generator())
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(out, augment(images, "hflip+shift", generator()))
    assert not torch.equal(out, augment(images, "hflip+shift", generator(1)))


def taken(split: Split, kind: Any = "none", seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """(first input, targets) of every view of all samples."""
    views = Views(split, kind, generator(seed))
    index = torch.arange(len(split))
    found = [views.take(torch.full_like(index, view), index) for view in range(views.count)]
    return [(inputs[0], targets) for inputs, targets in found]


def test_the_first_views_are_the_data_as_it_is_and_augmented() -> None:
    images = Split(inputs=(torch.rand(6, 1, 8, 8),), targets=torch.arange(6))
    for kind in ("none", "hflip", "shift", "hflip+shift"):
        assert torch.equal(taken(images, kind)[0][0], images.inputs[0]), kind
    assert torch.equal(taken(images, "none")[1][0], images.inputs[0])
    assert torch.equal(taken(images, "hflip")[1][0], images.inputs[0].flip(3))
    padded = torch.nn.functional.pad(images.inputs[0], (1, 1, 1, 1))
    for image, mirrored, around in zip(
        taken(images, "shift")[1][0], taken(images, "hflip+shift")[1][0], padded, strict=True
    ):
        windows = [around[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        assert any(torch.equal(image, window) for window in windows)
        windows = [around.flip(2)[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        assert any(torch.equal(mirrored, window) for window in windows)


def test_the_other_views_mix_each_sample_with_less_of_another_one() -> None:
    count = 50
    hot = Split(inputs=(torch.eye(count), 3 * torch.eye(count)), targets=torch.arange(count))
    views, index = Views(hot, "none", generator()), torch.arange(count)
    shares = []
    for view in range(2, views.count):
        (inputs, more), targets = views.take(torch.full_like(index, view), index)
        assert torch.equal(targets, index), "labels are those of the larger part"
        assert torch.allclose(inputs.sum(1), torch.ones(count))
        assert bool(((inputs > 0).sum(1) <= 2).all())
        assert bool((inputs.diagonal() >= 0.5 - 1e-6).all())
        assert torch.allclose(more, 3 * inputs), "all inputs of a sample alike"
        shares.append(inputs.diagonal())
    assert torch.cat(shares).mean() == pytest.approx(0.75, abs=0.03)


def test_real_valued_targets_are_mixed_like_their_inputs() -> None:
    values = torch.randn(40, 3)
    for inputs, targets in taken(Split(inputs=(values,), targets=values.clone())):
        assert torch.allclose(inputs, targets)


def test_views_are_decided_by_the_seed_and_may_be_asked_for_in_any_order() -> None:
    images = Split(inputs=(torch.rand(20, 1, 8, 8),), targets=torch.arange(20))
    whole = taken(images, "hflip+shift")
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole, taken(images, "hflip+shift"), strict=True))
    assert not torch.equal(whole[2][0], taken(images, "hflip+shift", seed=1)[2][0])
    view, index = torch.tensor([5, 0, 2, 7, 1]), torch.tensor([3, 19, 3, 0, 8])
    (inputs,), _ = Views(images, "hflip+shift", generator()).take(view, index)
    assert torch.equal(inputs, torch.stack([whole[v][0][i] for v, i in zip(view, index, strict=True)]))


def test_integers_are_not_mixed() -> None:
    tokens = Split(inputs=(torch.randint(9, (20, 5)), torch.rand(20, 2)), targets=torch.arange(20))
    assert Views(tokens, "none", generator()).count == 1
    bytes_ = Split(inputs=(torch.randint(255, (20, 1, 8, 8), dtype=torch.uint8),), targets=torch.arange(20))
    for view, (inputs, _) in enumerate(taken(bytes_, "hflip")):
        assert torch.equal(inputs, bytes_.inputs[0].flip(3) if view % 2 else bytes_.inputs[0])


def test_an_unknown_augmentation_or_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"augment takes none, hflip, shift or hflip.shift .* got 'vflip'"):
        augment(torch.rand(2, 1, 8, 8), "vflip", generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 'shift' and \[2, 8\]"):
        augment(torch.rand(2, 8), "shift", generator())
