"""Gradients at other weights than those that the optimizer moves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def moved(changes: Mapping[Tensor, Tensor | float]) -> Iterator[None]:
    """Within the block, these tensors are changed by so much; after it they are what they were, to the bit."""
    kept = {tensor: tensor.detach().clone() for tensor in changes}
    with torch.no_grad():
        for tensor, change in changes.items():
            tensor.add_(change)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept.items():
                tensor.copy_(value)
