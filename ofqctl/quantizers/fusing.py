"""Run the cores of the quantizers eagerly, or each compiled into a single pass."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import ParamSpec, TypeVar

import torch

from ofqctl.internals import allow_recompiling, without_function_modes

P = ParamSpec("P")
R = TypeVar("R")

_WORTH_COMPILING = 1 << 15  # elements; for fewer, calling a compiled function costs more than it saves
_SHAPES = 256  # number of distinct shapes, grids and strides that a core may be compiled for

_state = {"fused": False}


def set_fused(on: bool) -> None:
    """Compile the cores from now on, once for each shape, or run them eagerly.

    Compiled and eager cores give identical results. Compiling takes a few seconds for each shape and needs what
    ``torch.compile`` needs (on the CPU a C++ compiler); without that, the cores run eagerly after one warning.
    """
    _state["fused"] = on


def is_fused() -> bool:
    """Whether the cores are compiled."""
    return _state["fused"]


@contextmanager
def fused(on: bool = True) -> Iterator[None]:
    """`set_fused` within the block."""
    before = is_fused()
    set_fused(on)
    try:
        yield
    finally:
        set_fused(before)


def run(elements: int, core: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``core``, compiled if that is switched on and worthwhile for so many elements."""
    if not _state["fused"] or elements < _WORTH_COMPILING or torch.compiler.is_compiling():
        return core(*args, **kwargs)
    try:
        with without_function_modes():  # the cores call nothing that an attention block redirects
            result: R = _compiled(core)(*args, **kwargs)
            return result
    except Exception as error:  # noqa: BLE001
        set_fused(False)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"the quantizers run slower: their functions cannot be compiled here: {reason}", stacklevel=2)
        return core(*args, **kwargs)


@cache
def _compiled(core: Callable[P, R]) -> Callable[P, R]:
    allow_recompiling(_SHAPES)
    return torch.compile(core, dynamic=False, fullgraph=True)
