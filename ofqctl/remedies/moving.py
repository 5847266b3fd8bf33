"""Gradients at other weights than those that the optimizer moves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved(changes: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Within the block, these parameters are changed by so much; after it they are what they were, to the bit."""
    kept = {parameter: parameter.detach().clone() for parameter in changes}
    with torch.no_grad():
        for parameter, change in changes.items():
            parameter.add_(change)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept.items():
                parameter.copy_(value)
