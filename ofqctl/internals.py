"""All uses of torch's private names, each with the reason."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


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


def kept_by_activation(x: Tensor) -> Callable[[], Tensor] | None:
    """How to compute the output of a GELU or SiLU again, to the bit, from its input, which autograd keeps anyway.

    The input is an attribute of the graph node, which torch shows but does not document.

    Returns:
        None if ``x`` is anything else, or if the input may be asked for only once, as in activation checkpointing.
    """
    node: Any = x.grad_fn
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if node is None or torch.compiler.is_compiling() or hooks is not None:
        return None
    if node.name() == "GeluBackward0":
        return lambda: F.gelu(node._saved_self.detach(), approximate=node._saved_approximate)
    if node.name() == "SiluBackward0":
        return lambda: F.silu(node._saved_self.detach())
    return None
