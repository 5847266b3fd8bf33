"""Whether the cores of the quantizers run as they are written or as one compiled pass each."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import ParamSpec, TypeVar

import torch

from ofqctl.internals import allow_recompiling, without_function_modes

P = ParamSpec("P")
R = TypeVar("R")

_WORTH_COMPILING = 1 << 15  # elements; below that, a pass over memory costs less than the call of a compiled function
_SHAPES = 256  # distinct shapes, grids and strides that a core may be compiled for

_state = {"fused": False}


def set_fused(on: bool) -> None:
    """Compile the cores from now on, each for every shape it meets, or run them eagerly.

    Compiled and eager cores give the same bits. Compiling takes a few seconds a shape and needs what ``torch.compile``
    needs (on the CPU a C++ compiler); without that, the cores go on eagerly after one warning.
    """
    _state["fused"] = on


def is_fused() -> bool:
    """Whether the cores are compiled."""
    return _state["fused"]


@contextmanager
def fused(on: bool = True) -> Iterator[None]:
    """`set_fused` for a while."""
    before = is_fused()
    set_fused(on)
    try:
        yield
    finally:
        set_fused(before)


def run(elements: int, core: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``core``, compiled where that is asked for and the number of elements makes it worthwhile."""
    if not _state["fused"] or elements < _WORTH_COMPILING or torch.compiler.is_compiling():
        return core(*args, **kwargs)
    try:
        with without_function_modes():  # the cores have nothing that an attention block redirects
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
