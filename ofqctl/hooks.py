"""What is changed about modules for one block of code, and goes with it: hooks, and methods of single objects."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within the block, these hooks; each is registered as ``handles`` gives it."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def shadowed(module: nn.Module, method: str, new: Callable[..., Any]) -> Iterator[None]:
    """Within the block, ``new`` in place of a method of this one object."""
    own = vars(module)
    before = {method: own[method]} if method in own else {}
    own[method] = new
    try:
        yield
    finally:
        del own[method]
        own.update(before)
