"""Which elements of an activation share a grid step or a learned shift, for every kind of quantized tensor."""

from typing import Literal

from ofqctl.convert.survey import Seen, Shape
from ofqctl.recipe import FLOAT_BITS, Activations, QuantizerPlan
from ofqctl.recipe.schema import plan_for

Kind = Literal["features", "pixels", "feature_map", "heads", "values", "softmax", "head_features"]
"""Without the batch: features (*tokens, C); pixels and feature_map (C, H, W); heads and values (*heads, N, d);
softmax (*heads, N, M); head_features (*heads, N, C), QKR's ``W_qk x``."""

_ROWS_APART: tuple[Kind, ...] = (
    "features",
    "heads",
    "softmax",
    "head_features",
)  # no product sums over the rows of these


def step_shape(kind: Kind, granularity: str, shape: Shape) -> Shape:
    """Shape of the grid step for a tensor of ``shape`` (without the batch), aligned with its last dimensions."""
    if granularity == "tensor":
        return ()
    if kind == "features":
        return shape[-1:] if granularity == "channel" else (*shape[:-1], 1)
    *outer, rows, columns = shape
    if kind in ("pixels", "feature_map"):
        return (shape[0], 1, 1) if granularity == "channel" else ()
    if kind == "softmax" and granularity in ("channel", "head"):
        return (*outer, 1, 1) if granularity == "head" else ()
    if kind == "values" or granularity == "channel":
        return (*outer, 1, columns)
    return (*outer, rows, 1) if granularity == "head" or kind == "head_features" else (rows, 1)


def shift_shape(kind: Kind, shape: Shape) -> Shape | None:
    """Shape of the learned shifts: one for each channel, or for each pixel of the image; softmax outputs have none."""
    if kind == "softmax":
        return None
    if kind == "features":
        return shape[-1:]
    if kind == "pixels":
        return (1, *shape[1:])
    if kind == "feature_map":
        return (shape[0], 1, 1)
    return (*shape[:-2], 1, shape[-1])


def plan_operand(
    activations: Activations, kind: Kind, seen: Seen, *, signed: bool | None = True
) -> QuantizerPlan | None:
    """The quantizer of one activation, or None if the recipe leaves it in float.

    Args:
        activations: Settings in the recipe.
        kind: Kind of the tensor.
        seen: Its shapes in a dry run; if they differ between calls, or what has a step of its own differs between image
            sizes, there is one grid step for all, and the same holds of shifts.
        signed: Whether codes may be negative; None leaves it to the data.
    """
    if activations.bits == FLOAT_BITS:
        return None
    steps = {step_shape(kind, activations.granularity, shape) for shape in seen.shapes}
    shifts = {shift_shape(kind, shape) for shape in seen.shapes}
    return plan_for(
        activations,
        step_shape=steps.pop() if len(steps) == 1 else (),
        dynamic=activations.dynamic and kind in _ROWS_APART,
        shift_shape=shifts.pop() if len(shifts) == 1 and activations.shifts else None,
        signed=signed,
        whole=kind != "pixels",
    )
