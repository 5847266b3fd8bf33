"""Hooks of modules that go when a block ends."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def attached(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within the block, these hooks; each is registered as ``handles`` gives it."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
