"""Names of a study file to objects: a network, its weights, its data and a metric.

A name is a built-in or "package.module:function". The folder of the study file and the current
directory are importable while a function is looked up and called, and only then. Nothing here is
judged beyond its type; `recover/data.py` judges the data.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.config import DataConfig, ModelConfig
from autocompress.errors import UsageError
from autocompress.zoo.datasets import BUILTIN_IMAGES
from autocompress.zoo.models import mobilenetv2, resnet8, resnet20
from autocompress.zoo.sequences import row_lstm, small_vit, table_mlp, word_gru
from autocompress.zoo.tables import diabetes, languages

BUILTIN_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "mobilenetv2": mobilenetv2,
    "row_lstm": row_lstm,
    "word_gru": word_gru,
    "small_vit": small_vit,
    "table_mlp": table_mlp,
}
BUILTIN_DATA: Mapping[str, Callable[..., Any]] = {**BUILTIN_IMAGES, "languages": languages, "diabetes": diabetes}

# Top-level modules that came from a study's folder; another study may have its own of the same name.
_loaded: set[str] = set()


@contextlib.contextmanager
def importable(base: Path | None) -> Iterator[None]:
    """Puts the study's folder and the current directory in front of the import path, and restores it."""
    before = list(sys.path)
    folders = [str(folder.resolve()) for folder in (base, Path()) if folder is not None]
    sys.path[:0] = list(dict.fromkeys(folders))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def build_model(config: ModelConfig, *, base: Path | None, seed: int) -> nn.Module:
    """The network of `[model]`, with fresh weights that depend on nothing but `seed`.

    Args:
        config: `factory` is one of `BUILTIN_MODELS`, "torchvision:<name>" or "package.module:function".
        base: folder of the study file; None without one.
        seed: of the random generators while the factory runs; their state is restored afterwards.
    Raises:
        UsageError: no such module or function, arguments that do not fit, or no usable network came back.
    """
    if not config.factory:
        raise UsageError('[model] names no factory; set model.factory to a built-in or to "package.module:function')
    with importable(base), _seeded(seed):
        factory = _model_factory(config.factory)
        model = _call(factory, config.factory, config.args, table="model")
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{config.factory} must return a torch.nn.Module, got {_kind(model)}; return the network itself"
        )
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(f"the model of {config.factory} has no parameters; there is nothing to compress")
    if any(nn.parameter.is_lazy(p) for p in parameters):
        raise UsageError(
            f"the model of {config.factory} has lazy layers without shapes; run it once on a sample before returning it"
        )
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights in a file into `model`; every key and every shape must fit.

    Args:
        model: changed in place.
        path: .safetensors, or .pt, .pth, .ckpt or .bin with a state dict, also under the key "state_dict", and
            also with the prefixes that DataParallel ("module.") and torch.compile ("_orig_mod.") leave.
    Raises:
        UsageError: no such file, an unreadable or unsafe one, or the first key or shape that does not fit.
    """
    own = model.state_dict()
    state = _strip_prefixes(_read_state(path), own)
    if misfit := _misfit(own, state):
        raise UsageError(f"the weights in {path} do not fit the model: {misfit}; check model.factory and model.args")
    bad = next((name for name, value in state.items() if not torch.isfinite(value.float()).all()), None)
    if bad is not None:
        raise UsageError(f"{bad!r} in {path} holds NaN or infinite values; train or save the weights again")
    model.load_state_dict(state, strict=False)


def load_data(config: DataConfig, *, base: Path | None, seed: int) -> Mapping[str, Any]:
    """What the factory of `[data]` returns: a mapping with `train`, and perhaps `val` and `test`.

    Args:
        config: `factory` is a built-in data set or "package.module:function".
        base: folder of the study file; None without one.
        seed: of the random generators while the factory runs; their state is restored afterwards.
    Raises:
        UsageError: no such data set, module or function, arguments that do not fit, or no mapping came back.
    """
    name = config.factory
    if not name:
        raise UsageError('[data] names no factory; set data.factory to a built-in or to "package.module:function"')
    args = dict(config.args)
    with importable(base), _seeded(seed):
        if name in BUILTIN_DATA:
            factory: Callable[..., Any] = BUILTIN_DATA[name]
            accepts = inspect.signature(factory).parameters
            extra = {"download": config.download, "base": base}
            args.update({key: value for key, value in extra.items() if key in accepts and key not in args})
        else:
            factory = resolve(name, what="data set", builtins=tuple(BUILTIN_DATA))
        data = _call(factory, name, args, table="data")
    if not isinstance(data, Mapping):
        raise UsageError(f'{name} must return a mapping like {{"train": dataset}}, got {_kind(data)}')
    return data


def load_metric(spec: str, *, base: Path | None) -> Callable[..., Any]:
    """The function behind a "module:function" metric, called with (outputs, targets) as numpy arrays.

    Raises:
        UsageError: no such module or function.
    """
    with importable(base):
        return resolve(spec, what="metric", builtins=())


def resolve(spec: str, *, what: str, builtins: tuple[str, ...]) -> Callable[..., Any]:
    """The callable behind "package.module:function", importing the module from the present path.

    Args:
        spec: the name.
        what: what it should be, for errors: "model", "data set" or "metric".
        builtins: names without a colon that would have been known.
    Raises:
        UsageError: naming the part that is missing and the nearest one that is not.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(_unknown_name(spec, what, builtins))
    module = _import(module_name, spec)
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        near = difflib.get_close_matches(attribute, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"check the name after the colon in {spec!r}"
        raise UsageError(f"module {module_name} has no {attribute!r}; {hint}") from error
    if not callable(found):
        raise UsageError(f"{spec} must be a function or a class, got {_kind(found)}; name something that can be called")
    return found  # type: ignore[no-any-return]


def _model_factory(name: str) -> Callable[..., Any]:
    if name in BUILTIN_MODELS:
        return BUILTIN_MODELS[name]
    if name.startswith("torchvision:"):
        return _torchvision_factory(name.removeprefix("torchvision:"))
    return resolve(name, what="model", builtins=(*BUILTIN_MODELS, "torchvision:<name>"))


def _torchvision_factory(name: str) -> Callable[..., Any]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "torchvision.models.list_models() has the names"
        raise UsageError(f"torchvision has no classifier {name!r}; {hint}")
    builder = models.get_model_builder(name)

    def build(**args: Any) -> Any:
        # Pretrained weights would be fetched from the internet in the middle of a study.
        if args.pop("weights", None) is not None:
            raise UsageError(
                f"torchvision:{name} takes no pretrained weights by name; save its state_dict and set model.weights"
            )
        return builder(weights=None, **args)

    return build


def _import(module_name: str, spec: str) -> Any:
    top = module_name.partition(".")[0]
    _forget_namesake(top)
    fresh = top not in sys.modules
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {error.name!r} for {spec!r}; install it, or put it beside the study file"
            ) from error
        raise UsageError(f"module {module_name} needs {error.name!r}, which is not installed; install it") from error
    except Exception as error:
        raise UsageError(f"module {module_name} could not be imported: {_summary(error)}; correct it") from error
    if fresh:
        _loaded.add(top)
    return module


def _forget_namesake(top: str) -> None:
    """Drops a module that an earlier study loaded under the same name from another place."""
    if top not in _loaded or top not in sys.modules:
        return
    cached = sys.modules.pop(top)
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin == getattr(cached, "__file__", None):
        sys.modules[top] = cached
        return
    for name in [n for n in sys.modules if n.startswith(f"{top}.")]:
        del sys.modules[name]


def _call(factory: Callable[..., Any], name: str, args: Mapping[str, Any], *, table: str) -> Any:
    _check_arguments(factory, name, args, table=table)
    try:
        return factory(**args)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{name} raised {_summary(error)}; correct it or {table}.args") from error


def _check_arguments(factory: Callable[..., Any], name: str, args: Mapping[str, Any], *, table: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):
        return  # something written in C; it will complain itself
    try:
        signature.bind(**args)
    except TypeError as error:
        takes = ", ".join(n for n in signature.parameters if n != "base") or "no arguments"
        raise UsageError(f"{table}.args do not fit {name}: {error}; it takes {takes}") from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _unknown_name(spec: str, what: str, builtins: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(spec, builtins, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = f"known are {', '.join(builtins)}, or " if builtins else "write "
    return f'unknown {what} {spec!r}; {hint}{known}"package.module:function"'


def _summary(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"there is no weights file {path}; check model.weights, which is relative to the study file")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} is not a readable safetensors file ({_summary(error)}); save it again") from error
    if path.suffix not in (".pt", ".pth", ".ckpt", ".bin"):
        raise UsageError(f"weights must be a .safetensors, .pt or .pth file, got {path.name}; save model.state_dict()")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is damaged or holds Python objects, which are not loaded because they could run code; "
            "save model.state_dict() alone"
        ) from error
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        raise UsageError(f"{path} is not a readable weights file ({_summary(error)}); save it again") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        wrapped = (content[key] for key in ("state_dict", "model_state_dict", "model") if key in content)
        content = next((inner for inner in wrapped if isinstance(inner, Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"{path} holds no state dict of tensors; save model.state_dict() alone")
    return {str(name): value for name, value in content.items()}


def _strip_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "_orig_mod.", "module."):
        if not own.keys() & state.keys() and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    # A file may name tied weights once (safetensors does) and leave out what old BN layers did not count.
    given = {own[name].data_ptr() for name in state if name in own}
    missing = [n for n in own if n not in state and own[n].data_ptr() not in given]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    if missing:
        return f"{missing[0]!r} is missing ({len(missing)} of {len(own)} are)"
    extra = [n for n in state if n not in own]
    if extra:
        return f"the model has no {extra[0]!r} ({len(extra)} of {len(state)} in the file are unknown)"
    shapes = ((n, tuple(own[n].shape), tuple(v.shape)) for n, v in state.items() if own[n].shape != v.shape)
    return next((f"{n!r} must have the shape {want}, got {got}" for n, want, got in shapes), None)
