"""Read weight files without executing anything in them, and load them into a model strictly."""

import argparse
import inspect
import pickle
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from ofqctl.errors import ModelError
from ofqctl.models.building import weights_config
from ofqctl.models.outputs import class_count
from ofqctl.models.transformers_layout import from_transformers, in_transformers_layout

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")

_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_NESTED_KEYS = (*_AVERAGED_KEYS, "state_dict", "model_state_dict", "model", "module", "net", "network")
_DEEPEST = 3  # dicts around a state dict
_WRAPPER = re.compile(r"(module|_orig_mod|model|net|network)\.")  # a name that training code gives the model
_SHOWN = 4
_RESAMPLED = ("pos_embed", "patch_embed", "position_bias_table", "rel_pos")  # depend on image and patch size
# Exceptions that torch.load and timm's conversion functions are known to raise on unsuitable files.
_FOREIGN = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
)

_ZIP_FAULTS = (zlib.error, struct.error, NotImplementedError, EOFError, ValueError, LookupError, OverflowError)


def read_torch_file(path: Path, *, mapped: bool = False) -> Any:
    """Read the content of a PyTorch file, such as the dict of epoch, arch and state_dict in a ``.pth.tar``.

    Only tensors, plain containers, ``argparse.Namespace``, numbers of numpy and paths are created; no code in the file
    is executed.

    Args:
        path: Path of the file.
        mapped: Load only the tensors that are used into memory, if the file's layout allows it.

    Raises:
        ModelError: The file is missing, would run code, is truncated or is not a PyTorch file.
    """
    _check_is_file(path)
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for '{wanted[1]}'" if wanted else "it contains more than tensors and plain containers"
        raise ModelError(
            f"checkpoint '{path}': refused, because {reason}, and loading it could run code",
            hint="on a machine where you trust it, save only its state_dict, with torch.save or as .safetensors",
        ) from error
    except OSError as error:
        raise ModelError(f"checkpoint '{path}': cannot be read: {error.strerror or error}") from error
    except _FOREIGN as error:
        raise _damaged(path, "PyTorch", error) from error


def _check_sums(path: Path) -> None:
    """Check the content of a zip file, as torch writes them, against the sums in it, which torch itself does not.

    Raises:
        RuntimeError: A part of it was changed.
    """
    if not is_zipfile(path):
        return
    try:
        with ZipFile(path) as archive:
            changed = archive.testzip()
    except (BadZipFile, *_ZIP_FAULTS) as error:
        raise RuntimeError(f"its archive is damaged: {error}") from error
    if changed is not None:
        raise RuntimeError(f"its part {changed} was changed after it was written")


def read_checkpoint(path: Path, notes: list[str] | None = None) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors`` or PyTorch file, without wrapper prefixes such as ``module.``.

    In a training checkpoint, averaged weights take precedence: the first of `_NESTED_KEYS` that holds a state dict, or
    a dict with one, is read. Prefixes that all names have, as Lightning's ``model.``, are removed.

    Args:
        path: Path of the file.
        notes: Gets a sentence if averaged weights are taken in place of others in the file.

    Raises:
        ModelError: The file is missing, of unknown kind, unsafe, truncated, or contains no state dict.
    """
    _check_is_file(path)
    if path.suffix not in SUFFIXES:
        raise ModelError(f"checkpoint '{path}': unknown kind '{path.suffix}'; allowed: {', '.join(SUFFIXES)}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    found = _state_dict(content)
    if found is not None:
        names, state_dict = found
        averaged = next((name for name in names if name in _AVERAGED_KEYS), None)
        others = [name for name in _NESTED_KEYS if name not in _AVERAGED_KEYS and _state_dict(content.get(name))]
        if notes is not None and averaged is not None and others:
            notes.append(f"{path}: the averaged weights '{averaged}' were taken, not '{others[0]}'")
        content = state_dict
    elif isinstance(content, dict):
        content = next((content[key] for key in _NESTED_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise ModelError(f"checkpoint '{path}': contains a {type(content).__name__}; allowed: a state dict")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        seen = f"{_few(strange)} is not a tensor" if strange else "it is empty"
        raise ModelError(
            f"checkpoint '{path}': contains no state dict: {seen}; "
            f"allowed: tensors by name, alone or under one of {', '.join(_NESTED_KEYS)}"
        )
    return _unwrapped(dict(clean_state_dict(content)))


def _state_dict(content: Any, depth: int = _DEEPEST) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """The state dict that is ``content`` or lies in it, and the usual names under which it lies; None if none does."""
    if not isinstance(content, dict) or not content:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return (), content
    for key in _NESTED_KEYS if depth else ():
        if (found := _state_dict(content.get(key), depth - 1)) is not None:
            return (key, *found[0]), found[1]
    return None


def _unwrapped(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` without the names of wrappers that all of its names begin with."""
    while first := _WRAPPER.match(next(iter(state_dict))):
        if not all(name.startswith(first[0]) for name in state_dict):
            break
        state_dict = {name.removeprefix(first[0]): value for name, value in state_dict.items()}
    return state_dict


def _harmless() -> list[Any]:
    """What a file may create beside tensors and plain containers: values that training code leaves in checkpoints."""
    numbers = [np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"}]
    scalars = [(_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    paths = [
        (pure, f"{module}.{kind}Path")
        for module in ("pathlib", "pathlib._local")
        for kind, pure in (("Posix", PurePosixPath), ("Windows", PureWindowsPath))
    ]
    lightning = [(dict, f"{module}.AttributeDict") for module in _OF_LIGHTNING]
    return [argparse.Namespace, *numbers, *scalars, *paths, *lightning]


_OF_LIGHTNING = (
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)


def _numpy_scalar(kind: np.dtype[Any], content: bytes) -> Any:
    """A number or text of numpy from its bytes; what a file asks for under the name of numpy's own function."""
    if kind.kind not in "biufSU" or not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"a numpy scalar of type {kind}")
    return np.frombuffer(content, kind)[0]


def load_weights(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    where: str,
    replace_head: bool,
    notes: list[str] | None = None,
) -> int | None:
    """Load ``state_dict`` into ``model``; every tensor must be used and none may be missing.

    Names and shapes of other releases are converted by timm's own function for the architecture first, which also
    resamples position embeddings for another image size.

    Args:
        model: A timm model with any weights.
        state_dict: Result of `read_checkpoint`.
        where: Path of the file or directory, for messages.
        replace_head: Keep the model's own classifier if the file has none or one of another size.
        notes: Gets a sentence if tensors were resampled.

    Returns:
        Number of classes in the file (0 if it has no classifier) if the model kept its own classifier, otherwise None.

    Raises:
        ModelError: Tensors are missing, unexpected or of another shape.
    """
    given, state_dict = state_dict, _converted(state_dict, model)
    if notes is not None:
        notes.extend(resampled(given, state_dict))
    own = model.state_dict()
    misfits = {key for key in own.keys() & state_dict.keys() if own[key].shape != state_dict[key].shape}
    head = _head_tensors(model, own.keys() | state_dict.keys())
    head_fits = not head & (misfits | (own.keys() ^ state_dict.keys()))
    left_out = head if replace_head and not head_fits else set()
    faults = {
        "missing": sorted(own.keys() - state_dict.keys() - left_out),
        "not expected": sorted(state_dict.keys() - own.keys() - left_out),
        "of another shape": [_shapes(key, own, state_dict) for key in sorted(misfits - left_out)],
    }
    classes = next((len(state_dict[key]) for key in sorted(head & misfits)), 0)
    if any(faults.values()):
        only_head = len(faults["of another shape"]) == sum(map(len, faults.values())) and misfits <= head
        raise _misfit(model, where, faults, classes if only_head else None)
    kept = {key: value for key, value in state_dict.items() if key not in left_out}
    model.load_state_dict(kept, strict=not left_out)
    return classes if left_out else None


def resampled(given: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> list[str]:
    """A note on tensors that were resampled to fit another image or patch size; none if there are none.

    A tensor of positions or patches was resampled if it has another number of values than the one of the same name or,
    where the names were converted, than any.

    Args:
        given: Tensors of the file.
        fitted: The same tensors as the model takes them.
    """
    sizes = {tensor.numel() for tensor in given.values()}
    changed = [
        f"{name} {tuple(given[name].shape)} -> {tuple(tensor.shape)}" if name in given else name
        for name, tensor in fitted.items()
        if any(word in name for word in _RESAMPLED)
        and (tensor.numel() != given[name].numel() if name in given else tensor.numel() not in sizes)
    ]
    return [f"{len(changed)} tensors were resampled for other image or patch sizes: {_few(changed)}"] if changed else []


def check_finite(model: nn.Module, *, where: str) -> None:
    """Check that weights contain no NaN or Inf; the error names the first tensor that does."""
    bad = {
        name: count
        for name, value in model.state_dict().items()
        if value.is_floating_point() and (count := int((~value.isfinite()).sum()))
    }
    if bad:
        first, count = next(iter(bad.items()))
        raise ModelError(
            f"{where}: '{first}' has {count} values that are NaN or Inf"
            f" ({len(bad)} such tensors, {sum(bad.values())} values in all); allowed: finite weights",
            hint="use an earlier checkpoint",
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, *_FOREIGN) as error:
        raise _damaged(path, "safetensors", error) from error
    except OSError as error:
        raise ModelError(f"checkpoint '{path}': cannot be read: {error.strerror or error}") from error


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"checkpoint '{path}': is a directory", hint=f"write 'local-dir:{path}' as the model")
    if not path.is_file():
        raise ModelError(f"checkpoint '{path}': no such file")


def _damaged(path: Path, kind: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0].split(". ")[0] or "it ends too early"
    return ModelError(
        f"checkpoint '{path}': not a {kind} file, or truncated ({path.stat().st_size} bytes): {reason}",
        hint="download or copy it again",
    )


def _converted(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` converted by the function of the timm module, if it has one that can read it."""
    if in_transformers_layout(state_dict):
        state_dict = from_transformers(state_dict)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state_dict
    arguments = (dict(state_dict), model)[: len(inspect.signature(convert).parameters)]
    try:
        return dict(convert(*arguments))
    except _FOREIGN:
        return state_dict  # another architecture: the comparison of names gives a better message


def _head_tensors(model: Any, keys: Iterable[str]) -> set[str]:
    """Those of ``keys`` that belong to a classifier, as known by the model or by timm."""
    try:
        given = model.get_classifier()
    except AttributeError:  # some of timm's models without a classifier look for one in the module in its place
        given = ()
    named = weights_config(model).get("classifier") or ()
    given = given if isinstance(given, tuple) else (given,)
    names = {name for name, module in model.named_modules() if any(module is head for head in given)}
    names.update((named,) if isinstance(named, str) else named)
    if (
        class_count(model) == 0
    ):  # of a head of several layers, none may be left, so all that it lacks there belongs to one
        own, around = model.state_dict().keys(), tuple(f"{name.partition('.')[0]}." for name in names)
        return {key for key in keys if key not in own and key.startswith(around)}
    return {key for key in keys if key.startswith(tuple(f"{name}." for name in names))}


def _misfit(model: nn.Module, where: str, faults: dict[str, list[str]], classes: int | None) -> ModelError:
    listed = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in faults.items() if names)
    if classes is not None:
        hint = f"`--num-classes {classes}` uses its {classes} classes; another number creates a new classifier"
    else:
        hint = "check that the weights were saved from this model with these arguments"
    return ModelError(f"{where}: does not fit {weights_config(model)['architecture']}: {listed}", hint=hint)


def _shapes(key: str, own: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    return f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
