"""What is used of torch under names that it keeps to itself; all of it is here, each with the reason."""

from contextlib import AbstractContextManager

import torch


def without_function_modes() -> AbstractContextManager[None]:
    """A context in which no ``TorchFunctionMode`` sees the calls.

    Such a mode is on inside attention blocks, and ``torch.compile`` would make it a part of the function it compiles.
    torch has a public class to switch a mode on, and nothing public to switch all of them off.
    """
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


def allow_recompiling(shapes: int) -> None:
    """Let ``torch.compile`` make a version of one function for each of so many shapes; its default is 8.

    Newer releases take this as an argument of ``torch.compile``, older ones only as a setting of the compiler; and the
    limit of all functions together is such a setting in both.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, shapes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * shapes)
