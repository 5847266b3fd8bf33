"""Temporary changes of modules, undone at the end of a ``with`` block: hooks, methods of single objects, modes."""

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
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in evaluation mode, behind it in its own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train()  # clears what timm's modules cached in evaluation mode
        for module, mode in modes.items():
            module.training = mode


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
