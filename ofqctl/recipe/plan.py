"""What to do to one model: every quantized module, its quantizers and their shapes.

A plan is made once, from a recipe and a dry run of the model, and is then all that is needed to build the quantized
model again; it is what ``config.json`` holds.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

WeightMethod = Literal["statsq", "lsq", "uniform"]
ActivationMethod = Literal["lsq", "uniform"]
RangeMethod = Literal["minmax", "percentile", "mse"]
StartMethod = Literal["mean", "mse"]
ModuleKind = Literal["linear", "conv2d", "attention", "qkr"]


class Frozen(BaseModel):
    """A model that is never changed after it was made and knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantizerPlan(Frozen):
    """One quantizer.

    Attributes:
        method: Name of the quantizer.
        bits: Width of a code, 1-8.
        step_shape: Shape of the step, aligned with the last dimensions of the tensor; (1, 1) or () is one step for all.
        dynamic: Whether each row (the last dimension) is quantized relative to its largest magnitude, found at run
            time; steps and shifts are those of the row over it.
        shift_shape: Shape of the learned shifts ahead of rounding and behind it, or None for no shifts.
        signed: Whether codes may be negative; None leaves it to the data.
        symmetric: Whether real 0 is code 0 (or half a step off); otherwise each step has a zero point.
        whole: Whether those zero points are integers, so that real 0 is on the grid; an image's need not be.
        range: How a static range is chosen.
        percentile: Share of the values a static range covers with ``range: percentile``, in percent.
        start: Where learned steps and shifts start.
    """

    method: str
    bits: int = Field(ge=1, le=8)
    step_shape: tuple[int, ...]
    dynamic: bool = False
    shift_shape: tuple[int, ...] | None = None
    signed: bool | None = True
    symmetric: bool = True
    whole: bool = True
    range: RangeMethod = "minmax"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    start: StartMethod = "mean"


class ModulePlan(Frozen):
    """One module and what of it is quantized.

    Attributes:
        kind: What the module becomes.
        weight: Quantizer of its weight (of the merged query-key product for ``qkr``); None leaves it in float.
        operands: Quantizers of its activations by name: ``input``; ``q, k, softmax, v``; ``x, qkx, softmax, v``.
        query_bias: Whether ``qkr`` keeps the term of the query bias, which makes it exact; OFQ's authors drop it.
    """

    kind: ModuleKind
    weight: QuantizerPlan | None = None
    operands: dict[str, QuantizerPlan] = Field(default_factory=dict)
    query_bias: bool = True


class LeftFloat(Frozen):
    """A module, or the products of one, that stays in float, and why."""

    module: str
    type: str
    reason: str


class Plan(Frozen):
    """Every quantized module of one model, by its name in the model, and all that was left in float."""

    modules: dict[str, ModulePlan]
    left_float: tuple[LeftFloat, ...] = ()
