"""The fields of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ofqctl.recipe.methods import PTQ_STAGES, QUANTIZERS
from ofqctl.recipe.plan import QuantizerPlan, check_width, quantizer_plan
from ofqctl.recipe.registered import ByName
from ofqctl.recipe.training import Training
from ofqctl.registry import Frozen

FLOAT_BITS = 32
LOW_BITS = (1, 2, 3, 4, 5, 6, 7, 8)


def _known_width(bits: int) -> int:
    if bits not in LOW_BITS and bits != FLOAT_BITS:
        raise ValueError(f"{bits} bits; allowed are 1-8, or {FLOAT_BITS} for float")
    return bits


Bits = Annotated[int, Field(strict=True), AfterValidator(_known_width)]


class _Method(BaseModel):
    """A part that names a method; the method's settings are validated when it becomes part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _Quantized(_Method):
    bits: Bits = 8
    method: str = "uniform"

    def refused(self, bits: int) -> str | None:  # noqa: ARG002
        """Why the method cannot have this width, or None; the settings of a method override it."""
        return None

    @model_validator(mode="after")
    def _possible_width(self) -> Self:
        check_width(None if self.bits == FLOAT_BITS else self.refused(self.bits))
        return self


class Weights(_Quantized):
    """How weights are quantized; also has the settings of the method.

    Attributes:
        bits: 1-8, or 32 for float.
        method: Name of a quantizer.
        granularity: What shares a grid step: an output ``channel`` or the whole ``tensor``.
    """

    granularity: Literal["channel", "tensor"] = "channel"


class Activations(_Quantized):
    """How the inputs of layers and the operands of attention are quantized; also has the settings of the method.

    Attributes:
        bits: 1-8, or 32 for float.
        method: Name of a quantizer.
        granularity: What shares a grid step: the whole ``tensor``, a ``channel``, or a ``token``. With ``token`` the
            values of attention have a step per channel and the softmax output has one per query; ``head`` is the same,
            but in attention each head has its own steps, and one step for its softmax output.
        dynamic: Quantize each row relative to its largest magnitude, found at run time: each token of a Linear's input,
            and in attention each query, key and row of the softmax output. Images, feature maps and values, the rows
            of which are summed over, stay as they are.
        shifts: Whether there are learned shifts before and after the quantizer.
    """

    granularity: Literal["tensor", "channel", "token", "head"] = "tensor"
    dynamic: bool = False
    shifts: bool = False


_ANY_WEIGHTS, _ANY_ACTIVATIONS = (ByName(QUANTIZERS, role=role) for role in ("weights", "activations"))
AnyWeights = Annotated[Weights, _ANY_WEIGHTS]
AnyActivations = Annotated[Activations, _ANY_ACTIVATIONS]


def plan_for(
    spec: Weights | Activations,
    *,
    step_shape: tuple[int, ...],
    shape: tuple[int, ...] | None = None,
    **fields: Any,
) -> QuantizerPlan:
    """The plan of a quantizer for one tensor: method, bits and settings as ``spec`` has them.

    Args:
        spec: Part of a recipe.
        step_shape: Shape of the grid step.
        shape: Shape of the weight; None for an activation.
        **fields: Other fields of :class:`QuantizerPlan`.
    """
    whole = (
        _ANY_WEIGHTS.validate(Weights, spec)
        if isinstance(spec, Weights)
        else _ANY_ACTIVATIONS.validate(Activations, spec)
    )
    own = QUANTIZERS[spec.method].settings.model_fields
    shapes = {"step_shape": step_shape, "shape": shape}
    return quantizer_plan(spec.method, bits=spec.bits, **shapes, **fields, **whole.model_dump(include=set(own)))


class Stage(_Method):
    """One stage of post-training quantization; its settings stand beside this key.

    Attributes:
        stage: Name of the stage.
    """

    stage: str


AnyStage = Annotated[Stage, ByName(PTQ_STAGES, key="stage")]


class Layer(Frozen):
    """Weights and activations of one kind of layer."""

    weights: AnyWeights = Field(default_factory=Weights, validate_default=True)
    activations: AnyActivations = Field(default_factory=Activations, validate_default=True)


class Override(Frozen):
    """Exceptions for the modules whose names match ``target``.

    Attributes:
        target: Shell-style pattern of module names, such as ``blocks.*.mlp.fc2``; an attention block's two products
            go by its own name.
        weights: Replaces the recipe's ``weights`` there.
        activations: Replaces the recipe's ``activations`` there.
    """

    target: str = Field(min_length=1)
    weights: AnyWeights | None = None
    activations: AnyActivations | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.weights is None and self.activations is None:
            raise ValueError(f"says nothing about '{self.target}'; give weights, activations or both")
        return self


class Attention(Frozen):
    """What is done to attention.

    Attributes:
        products: Quantize the operands of both matrix products (query, key, softmax output, value).
        qkr: Query-key reparameterization: quantize the product of the two projections instead of each (OFQ).
        kv_bits: Largest number of bits of keys and values, the right factors of the products; None for no limit.
            Beside 8-bit queries, 7 bits are exact on CPUs without VNNI, and fast on those with it.
        dynamic: Queries, keys and rows of the softmax output are ``dynamic``, even if other activations are not.
        query_bias: With ``qkr``: keep the term of the query bias, which makes it exact; OFQ's authors drop it.
    """

    products: bool = True
    qkr: bool = False
    kv_bits: Bits | None = None
    dynamic: bool = False
    query_bias: bool = True

    @model_validator(mode="after")
    def _merges_what_is_quantized(self) -> Self:
        if self.qkr and not self.products:
            raise ValueError("qkr merges query and key of quantized products; products: false leaves them in float")
        for key in ("kv_bits", "dynamic"):
            if getattr(self, key) and not self.products:
                raise ValueError(f"{key} is about quantized products; products: false leaves them in float")
        return self


class Calibration(Frozen):
    """Where the start values of the quantizers come from.

    Attributes:
        images: Number of calibration images.
        batch_size: Images in one forward pass; bounds memory. Activations with ``lsq`` and ``start: mean`` need a pass
            for each quantizer if it is less than ``images``.
        fitting: Steps in which synthetic images, used where there are no others, are fitted to the float model; 60 are
            enough. With 0 they are noise with the spectrum of photographs.
    """

    images: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1)
    fitting: int = Field(default=0, ge=0)


class Recipe(Frozen):
    """Everything that ``quantize`` and ``train`` need to know, except for the model and the data.

    Attributes:
        name: Its name in the catalogue.
        description: Description in one line.
        source: Paper and figures it follows, if any.
        model: Shell-style pattern of the architectures it is for; None for any.
        weights: How to quantize the weights of every Linear and Conv2d that is neither first nor last.
        activations: How to quantize the inputs of these layers and the operands of attention.
        first: How to quantize the patch embedding (timm's ``first_conv``).
        last: How to quantize the classifiers (timm's ``classifier``).
        attention: What is done to attention.
        layers: Exceptions by module name; later ones win.
        calibration: Where start values come from.
        ptq: Stages that follow calibration, in this order: in ``quantize``, and ahead of training in ``train``.
        training: How ``train`` trains, or None if the recipe does not say.
    """

    name: str = "custom"
    description: str = ""
    source: str = ""
    model: str | None = None
    weights: AnyWeights = Field(default_factory=Weights, validate_default=True)
    activations: AnyActivations = Field(default_factory=Activations, validate_default=True)
    first: Layer = Field(default_factory=Layer)
    last: Layer = Field(default_factory=Layer)
    attention: Attention = Attention()
    layers: tuple[Override, ...] = ()
    calibration: Calibration = Calibration()
    ptq: tuple[AnyStage, ...] = ()
    training: Training | None = None
