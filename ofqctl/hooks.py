"""Temporary changes of modules, undone at the end of a ``with`` block: hooks, and methods of single objects."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks within the block; each is registered when ``handles`` is iterated."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def shadowed(module: nn.Module, method: str, new: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of this one object by ``new`` within the block."""
    own = vars(module)
    overridden = {method: own[method]} if method in own else {}
    own[method] = new
    try:
        yield
    finally:
        del own[method]
        own.update(overridden)
