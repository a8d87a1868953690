"""Names to objects: what is found, what is restored, and the sentence for everything that can be wrong."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import TinyNet
from torch import nn

from autocompress.config import DataConfig, ModelConfig, load_config, read_toml
from autocompress.errors import UsageError
from autocompress.zoo.factory import build_model, load_data, load_metric, load_weights
from autocompress.zoo.tables import ALPHABET

_numbers = itertools.count()


def write_module(folder: Path, code: str, name: str | None = None) -> str:
    """A module under a name that no other test uses."""
    name = name or f"user_code_{next(_numbers)}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    return name


def model_config(factory: str, **args: Any) -> ModelConfig:
    return ModelConfig.model_validate({"factory": factory, "args": args})


def data_config(factory: str, *, download: bool = False, **args: Any) -> DataConfig:
    return DataConfig.model_validate({"factory": factory, "args": args, "download": download})


# Models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet8", 173_842),
        ("resnet20", 272_186),
        ("mobilenetv2", 100_170),
        ("row_lstm", 82_186),
        ("word_gru", 64_901),
        ("small_vit", 138_890),
        ("table_mlp", 4_929),
    ],
)
def test_built_in_networks_have_their_known_size(name: str, params: int) -> None:
    arguments = {"in_channels": 1} if name in ("resnet8", "resnet20", "mobilenetv2", "small_vit") else {}
    model = build_model(model_config(name, **arguments), base=None, seed=0)
    assert sum(p.numel() for p in model.parameters()) == params


def test_torchvision_classifiers_come_without_weights() -> None:
    model = build_model(model_config("torchvision:mobilenet_v3_small", num_classes=7), base=None, seed=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_torchvision_weights_by_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"takes no pretrained weights by name; save its state_dict"):
        build_model(model_config("torchvision:resnet18", weights="DEFAULT"), base=None, seed=0)


def test_an_unknown_torchvision_name_hints_at_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no classifier 'resnet81'; did you mean 'resnet18'"):
        build_model(model_config("torchvision:resnet81"), base=None, seed=0)


def test_the_seed_alone_decides_the_weights_and_other_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (float(torch.rand(1)), random.random(), float(np.random.rand()))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    first = build_model(model_config("resnet20"), base=None, seed=1).state_dict()
    assert (float(torch.rand(1)), random.random(), float(np.random.rand())) == expected
    second = build_model(model_config("resnet20"), base=None, seed=1).state_dict()
    other = build_model(model_config("resnet20"), base=None, seed=2).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


NET = "from torch import nn\ndef make(width=2):\n    return nn.Linear(width, 3)\n"


def test_a_module_beside_the_study_file_is_found_and_the_path_restored(tmp_path: Path) -> None:
    name = write_module(tmp_path, NET)
    before = list(sys.path)
    model = build_model(model_config(f"{name}:make", width=5), base=tmp_path, seed=0)
    assert model.in_features == 5
    assert sys.path == before
    assert type(pickle.loads(pickle.dumps(model))) is nn.Linear


def test_a_module_in_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_module(tmp_path, NET)
    monkeypatch.chdir(tmp_path)
    assert build_model(model_config(f"{name}:make"), base=None, seed=0).in_features == 2


def test_the_path_is_restored_after_a_failure(tmp_path: Path) -> None:
    name = write_module(tmp_path, "raise RuntimeError('boom')")
    before = list(sys.path)
    with pytest.raises(UsageError):
        build_model(model_config(f"{name}:make"), base=tmp_path, seed=0)
    assert sys.path == before


def test_two_studies_may_have_modules_of_the_same_name(tmp_path: Path) -> None:
    name = write_module(tmp_path / "a", NET)
    write_module(tmp_path / "b", NET.replace("3", "4"), name)
    config = model_config(f"{name}:make")
    outputs = [build_model(config, base=tmp_path / folder, seed=0).out_features for folder in ("a", "b", "a")]
    assert outputs == [3, 4, 3]


def test_a_module_that_stays_is_imported_once(tmp_path: Path) -> None:
    name = write_module(tmp_path, NET + "class Net(nn.Linear):\n    pass\n")
    config = model_config(f"{name}:Net", in_features=1, out_features=1)
    assert type(build_model(config, base=tmp_path, seed=0)) is type(build_model(config, base=tmp_path, seed=0))


CODE = """
from torch import nn
def make(width): return nn.Linear(width, 2)
def none(): return None
def broken(): raise KeyError("layer9")
def empty(): return nn.ReLU()
def lazy(): return nn.LazyLinear(3)
number = 3
"""


@pytest.mark.parametrize(
    ("attribute", "args", "message"),
    [
        ("mak", {}, "has no 'mak'; did you mean 'make'"),
        ("zzz", {}, "has no 'zzz'; check the name after the colon"),
        ("number", {}, "must be a function or a class, got a int"),
        ("none", {}, "must return a torch.nn.Module, got None"),
        ("broken", {}, "raised KeyError: 'layer9'; correct it or model.args"),
        ("empty", {}, "has no parameters; there is nothing to compress"),
        ("lazy", {}, "lazy layers"),
        ("make", {}, r"model.args do not fit .*missing a required argument: 'width'; it takes width"),
        ("make", {"width": 1, "depth": 2}, "model.args do not fit .*'depth'; it takes width"),
    ],
)
def test_a_factory_that_does_not_work_is_explained(
    tmp_path: Path, attribute: str, args: dict[str, Any], message: str
) -> None:
    name = write_module(tmp_path, CODE)
    with pytest.raises(UsageError, match=message) as caught:
        build_model(model_config(f"{name}:{attribute}", **args), base=tmp_path, seed=0)
    assert "\n" not in str(caught.value)


def test_a_missing_module_a_missing_dependency_and_a_broken_module_are_told_apart(tmp_path: Path) -> None:
    needy = write_module(tmp_path, "import no_such_library")
    broken = write_module(tmp_path, "def f(:")
    with pytest.raises(
        UsageError, match=r"there is no module 'nowhere_at_all' for 'nowhere_at_all.nets:f'; install it"
    ):
        build_model(model_config("nowhere_at_all.nets:f"), base=tmp_path, seed=0)
    with pytest.raises(UsageError, match=rf"module {needy} needs 'no_such_library', which is not installed"):
        build_model(model_config(f"{needy}:f"), base=tmp_path, seed=0)
    with pytest.raises(UsageError, match=rf"module {broken} could not be imported: SyntaxError"):
        build_model(model_config(f"{broken}:f"), base=tmp_path, seed=0)


def test_a_name_without_a_colon_hints_at_the_nearest_built_in() -> None:
    with pytest.raises(UsageError, match=r'unknown model \'resnet2\'; did you mean \'resnet20\'\?.*"package.module'):
        build_model(model_config("resnet2"), base=None, seed=0)
    with pytest.raises(UsageError, match=r"unknown data set 'fashion-mnist'; did you mean 'fashion_mnist'\?"):
        load_data(data_config("fashion-mnist"), base=None, seed=0)
    with pytest.raises(UsageError, match=r'unknown metric \'auc\'; write "package.module:function"'):
        load_metric("auc", base=None)


def test_no_name_at_all_says_where_to_put_one() -> None:
    with pytest.raises(UsageError, match=r"set model.factory"):
        build_model(ModelConfig.model_validate({}), base=None, seed=0)
    with pytest.raises(UsageError, match=r"set data.factory"):
        load_data(DataConfig.model_validate({}), base=None, seed=0)


# Weights -------------------------------------------------------------------------------------------


def changed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: torch.full_like(v, 2) for k, v in model.state_dict().items()}


def holds_twos(model: nn.Module) -> bool:
    return all(bool((v == 2).all()) for v in model.state_dict().values())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_load_through_their_usual_wrappers(
    tiny_model: TinyNet, tmp_path: Path, suffix: str, wrapper: str | None, prefix: str
) -> None:
    state: dict[str, Any] = {prefix + k: v for k, v in changed(tiny_model).items()}
    path = tmp_path / f"w{suffix}"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    load_weights(tiny_model, path)
    assert holds_twos(tiny_model)


def test_safetensors_load(tiny_model: TinyNet, tmp_path: Path) -> None:
    save_file(changed(tiny_model), tmp_path / "w.safetensors")
    load_weights(tiny_model, tmp_path / "w.safetensors")
    assert holds_twos(tiny_model)


def test_a_model_whose_own_names_begin_with_module_still_loads(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    torch.save(changed(model), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert holds_twos(model)


def test_tied_weights_may_be_named_once_and_batch_counts_left_out(tiny_model: TinyNet, tmp_path: Path) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    save_file({k: v for k, v in changed(tied).items() if k != "b.weight"}, tmp_path / "tied.safetensors")
    load_weights(tied, tmp_path / "tied.safetensors")
    assert holds_twos(tied)
    state = {k: v for k, v in changed(tiny_model).items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    load_weights(tiny_model, tmp_path / "old.safetensors")
    assert tiny_model.fc.bias.tolist() == [2, 2, 2, 2]


def test_the_first_misfit_is_named_and_nothing_was_changed(tiny_model: TinyNet, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    state = changed(tiny_model)
    cases = {
        "missing": ({k: v for k, v in state.items() if k != "fc.weight"}, r"'fc.weight' is missing \(1 of 14 are\)"),
        "extra": ({**state, "head.weight": torch.ones(1)}, "the model has no 'head.weight'"),
        "shape": (
            {**state, "fc.weight": torch.ones(10, 8)},
            r"'fc.weight' must have the shape \(4, 8\), got \(10, 8\)",
        ),
        "nan": ({**state, "fc.bias": torch.full((4,), torch.nan)}, "'fc.bias' in .* holds NaN or infinite values"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(UsageError, match=message):
            load_weights(tiny_model, path)
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())


class Trap:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("trap-was-sprung",))


def test_a_pickle_with_code_is_not_run(tiny_model: TinyNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UsageError, match=r"could run code; save model.state_dict"):
        load_weights(tiny_model, tmp_path / "trap.pt")
    assert not (tmp_path / "trap-was-sprung").exists()


def test_a_whole_pickled_model_is_refused(tiny_model: TinyNet, tmp_path: Path) -> None:
    torch.save(tiny_model, tmp_path / "whole.pt")
    with pytest.raises(UsageError, match=r"holds Python objects.*save model.state_dict"):
        load_weights(tiny_model, tmp_path / "whole.pt")


def test_unreadable_weights_are_named(tiny_model: TinyNet, tmp_path: Path) -> None:
    torch.save(tiny_model.state_dict(), tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    contents = {"cut.pt": good[: len(good) // 2], "empty.pt": b"", "text.pt": b"hello", "text.safetensors": b"hello"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"{name} is (damaged|not a readable)"):
            load_weights(tiny_model, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match=r"holds no state dict of tensors"):
        load_weights(tiny_model, tmp_path / "list.pt")
    with pytest.raises(UsageError, match=r"there is no weights file .*none\.pt; check model\.weights"):
        load_weights(tiny_model, tmp_path / "none.pt")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=r"must be a \.safetensors, \.pt or \.pth file, got w\.h5"):
        load_weights(tiny_model, tmp_path / "w.h5")


# Data and metrics ----------------------------------------------------------------------------------


def test_data_comes_by_name_and_from_a_users_module(tmp_path: Path) -> None:
    assert set(load_data(data_config("digits"), base=None, seed=0)) == {"train", "val", "test"}
    name = write_module(tmp_path, "import torch\ndef load(n): return {'train': (torch.rand(n, 2), torch.arange(n))}")
    first = load_data(data_config(f"{name}:load", n=3), base=tmp_path, seed=7)
    second = load_data(data_config(f"{name}:load", n=3), base=tmp_path, seed=7)
    assert torch.equal(first["train"][0], second["train"][0])
    assert first["train"][1].tolist() == [0, 1, 2]


def test_a_data_factory_that_does_not_work_is_explained(tmp_path: Path) -> None:
    name = write_module(tmp_path, "def wrong(): return [1]\ndef broken(): raise OSError('disk gone')\n")
    with pytest.raises(UsageError, match=r"must return a mapping like \{\"train\": dataset\}, got a list"):
        load_data(data_config(f"{name}:wrong"), base=tmp_path, seed=0)
    with pytest.raises(UsageError, match=r"raised OSError: disk gone; correct it or data.args"):
        load_data(data_config(f"{name}:broken"), base=tmp_path, seed=0)
    with pytest.raises(UsageError, match=r"data.args do not fit digits: .*'size'; it takes no arguments"):
        load_data(data_config("digits", size=3), base=None, seed=0)
    with pytest.raises(UsageError, match=r"data.args do not fit imagefolder: missing a required argument: 'path'"):
        load_data(data_config("imagefolder"), base=None, seed=0)


def test_an_error_of_a_built_in_data_set_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"photos has no folder named train") as caught:
        load_data(data_config("imagefolder", path="photos"), base=tmp_path, seed=0)
    assert str(tmp_path / "photos") in str(caught.value)


def test_a_metric_of_ones_own_is_found(tmp_path: Path) -> None:
    name = write_module(tmp_path, "def half(outputs, targets): return 0.5")
    assert load_metric(f"{name}:half", base=tmp_path)(None, None) == 0.5


STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_built_in_study_is_valid_and_its_model_fits_its_data(path: Path) -> None:
    config = load_config(read_toml(path), name=path.stem)
    samples = {
        "placed_digits": (torch.zeros(2, 1, 12, 12), 10),
        "fashion_mnist": (torch.zeros(2, 1, 28, 28), 10),
        "cifar10": (torch.zeros(2, 3, 32, 32), 10),
        "languages": (torch.full((2, 16), len(ALPHABET) + 1), 5),
        "diabetes": (torch.zeros(2, 10), 1),
    }
    inputs, outputs = samples[config.data.factory]
    model = build_model(config.model, base=path.parent, seed=0).eval()
    with torch.no_grad():
        assert model(inputs).shape == (2, outputs)


def test_the_studies_that_the_design_promises_are_there() -> None:
    names = {path.stem for path in STUDIES}
    assert {"digits", "fashion_mnist_resnet20", "fashion_mnist_mobilenetv2", "cifar10_resnet20"} <= names
    assert {"fashion_mnist_lstm", "fashion_mnist_vit", "languages_gru", "diabetes_mlp"} <= names
