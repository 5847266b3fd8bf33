"""Plans: every quantized module of one model, its quantizers and their shapes.

A plan is made once, from a recipe and a dry run of the model. It is all that is needed to build the quantized model
again, and is stored in ``config.json``.
"""

from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.registered import ByName
from ofqctl.registry import Frozen

ModuleKind = Literal["linear", "conv2d", "attention", "qkr"]
Replacement = Literal["rms_norm"]
"""What can stand in place of a float module: ``rms_norm`` is a LayerNorm of what has a mean of 0, without its shift."""


_LARGEST = 2**31  # elements of a tensor


def _allowed_shape(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if any(length < 0 for length in lengths) or prod(lengths) > _LARGEST:
        raise ValueError(f"not the shape of a tensor with up to {_LARGEST} elements")
    return lengths


Shape = Annotated[tuple[int, ...], Field(max_length=8), AfterValidator(_allowed_shape)]


def check_width(refusal: str | None) -> None:
    """Raise ``ValueError`` with the reason if a method refuses a width."""
    if refusal is not None:
        raise ValueError(refusal)


class QuantizerPlan(Frozen):
    """The plan of one quantizer, which also has the settings of its method.

    Attributes:
        method: Name of the quantizer.
        bits: Width of a code, 1-8.
        step_shape: Shape of the grid step, aligned with the last dimensions of the tensor; (1, 1) or () means one step
            for all.
        shape: Shape of the weight; None for an activation.
        dynamic: Whether each row (the last dimension) is divided by its largest magnitude, found at run time; grid
            steps and shifts apply to the quotient.
        shift_shape: Shape of the learned shifts before and after rounding, or None for no shifts.
        signed: Whether codes may be negative; None leaves it to the data.
        whole: Whether zero points are integers, so that 0 is on the grid; those of an image need not be.
    """

    method: str
    bits: int = Field(ge=1, le=8)
    step_shape: Shape
    shape: Shape | None = None
    dynamic: bool = False
    shift_shape: Shape | None = None
    signed: bool | None = True
    whole: bool = True

    def refused(self, bits: int) -> str | None:  # noqa: ARG002
        """Why the method cannot have this width, or None; the settings of a method override it."""
        return None

    @model_validator(mode="after")
    def _possible_width(self) -> Self:
        check_width(self.refused(self.bits))
        return self


_ANY_QUANTIZER = ByName(QUANTIZERS, key="method")
AnyQuantizerPlan = Annotated[QuantizerPlan, _ANY_QUANTIZER]


AT_START = "decides where a quantizer starts, not what it computes"
"""Marks such settings of a quantizer in an ``Annotated``."""


def quantizer_plan(method: str, **fields: Any) -> QuantizerPlan:
    """The plan of a quantizer, with its method's settings among ``fields``.

    Raises:
        ValidationError: A field is unknown or has an invalid value.
    """
    plan = _ANY_QUANTIZER.validate(QuantizerPlan, {"method": method, **fields})
    assert isinstance(plan, QuantizerPlan)
    return plan


def computes_alike(one: QuantizerPlan, other: QuantizerPlan) -> bool:
    """Whether two plans have the same grid; start values, and ``signed`` left to the data, do not matter."""
    if type(one) is not type(other):
        return False
    alike = {name for name, field in type(one).model_fields.items() if AT_START in field.metadata}
    if one.signed is None or other.signed is None:
        alike.add("signed")
    if one.shape is None or other.shape is None:
        alike.add("shape")
    return one.model_dump(exclude=alike) == other.model_dump(exclude=alike)


class ModulePlan(Frozen):
    """The plan of one module.

    Attributes:
        kind: Kind of the quantized module.
        weight: Quantizer of its weight (for ``qkr``, of merged query and key); None leaves it in float.
        operands: Quantizers of its activations by name: ``input``; ``q, k, softmax, v``; ``x, qkx, softmax, v``.
        query_bias: Whether ``qkr`` keeps the term of the query bias, which makes it exact; OFQ's authors drop it.
    """

    kind: ModuleKind
    weight: AnyQuantizerPlan | None = None
    operands: dict[str, AnyQuantizerPlan] = Field(default_factory=dict)
    query_bias: bool = True


class LeftFloat(Frozen):
    """A module that stays in float, or whose products do, and why."""

    module: str
    type: str
    reason: str


class Plan(Frozen):
    """Every quantized module of one model by name, and everything that was left in float.

    Attributes:
        modules: Plan of each quantized module.
        left_float: What was left in float, and why.
        replaced: Float modules of the architecture that others stand in place of, as a stage has changed the model.
    """

    modules: dict[str, ModulePlan]
    left_float: tuple[LeftFloat, ...] = ()
    replaced: dict[str, Replacement] = Field(default_factory=dict)
