"""Changes of a float model that leave its function as it is: tried on a copy, and made only where that is so."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ofqctl.models.outputs import every_output

_TOLERANCE = 1e-8  # largest change of an output by rounding in float64, relative to the largest output

T = TypeVar("T")


def together_or_alone(parts: list[T], hold: Callable[[list[T]], bool]) -> list[T]:
    """Those parts that hold: tried all at once, which is one pass, and one by one if one of them does not."""
    return parts if not parts or hold(parts) else [part for part in parts if hold([part])]


def holds(model: nn.Module, image: Tensor, change: Callable[[nn.Module], None]) -> bool:
    """Whether a change leaves all outputs of a model as they are, to rounding in float64, on the CPU.

    Args:
        model: A float model in evaluation mode; a copy of it is changed.
        image: One image, (1, 3, H, W).
        change: Changes a model in place.
    """
    exact, image = copy.deepcopy(model).cpu().double(), image.cpu().double()
    with torch.no_grad():
        expected = every_output(exact, image)
        change(exact)
        outputs = every_output(exact, image)
    return all(
        bool((output - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
        for output, wanted in zip(outputs, expected, strict=True)
    )
