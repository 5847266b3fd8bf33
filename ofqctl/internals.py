"""All uses of torch's private names, each with the reason."""

from contextlib import AbstractContextManager
from typing import Any

import torch


def without_function_modes() -> AbstractContextManager[None]:
    """A context in which no ``TorchFunctionMode`` intercepts calls.

    Such a mode is active inside attention blocks, and ``torch.compile`` would compile it into the function. torch has a
    public class to switch a mode on, but no public way to switch all modes off.
    """
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


def allow_recompiling(shapes: int) -> None:
    """Let ``torch.compile`` compile one function for up to ``shapes`` shapes; its default is 8.

    Newer releases take this as an argument of ``torch.compile``, older ones only as a compiler setting. The limit for
    all functions together is a compiler setting in both.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, shapes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * shapes)


def disabled_when_called(function: Any = None, recursive: bool = True, **_reason: Any) -> Any:
    """Do as ``torch.compiler.disable``, but load the compiler when the function is called, not when it is marked.

    torch does so for its own functions, with a decorator that is private.
    """
    from torch._compile import _disable_dynamo

    return _disable_dynamo(function, recursive)
