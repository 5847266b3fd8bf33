"""What to do to any model: the recipe, as frozen typed models. Field name = YAML key = ``--set`` path."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ofqctl.recipe.plan import ActivationMethod, Frozen, RangeMethod, StartMethod, WeightMethod
from ofqctl.recipe.refining import Step
from ofqctl.recipe.training import Training

FLOAT_BITS = 32
LOW_BITS = (2, 3, 4, 5, 6, 7, 8)
RangeChoice = Literal[RangeMethod, "auto"]
_CLIP_NOTHING = 8  # bits from which `auto` clips nothing: what clipping gains in resolution is worth less there


def _known_width(bits: int) -> int:
    if bits not in LOW_BITS and bits != FLOAT_BITS:
        raise ValueError(f"{bits} bits; allowed are 2-8, or {FLOAT_BITS} for float")
    return bits


def resolve_range(choice: RangeChoice, bits: int) -> RangeMethod:
    """The method that a recipe's ``range`` stands for at a width."""
    if choice == "auto":
        return "minmax" if bits >= _CLIP_NOTHING else "mse"
    return choice


Bits = Annotated[int, Field(strict=True), AfterValidator(_known_width)]


class Weights(Frozen):
    """How weights are quantized.

    Attributes:
        bits: 2-8, or 32 for float.
        method: ``statsq``, ``lsq`` or ``uniform``.
        granularity: What shares a step: an output ``channel`` or the whole ``tensor``.
        symmetric: With ``uniform``: a grid around 0; otherwise each step has a zero point.
        range: With ``uniform``: how the range is chosen; ``auto`` is ``minmax`` at 8 bits and ``mse`` below.
        percentile: With ``range: percentile``: the share of the values that the range covers, in percent.
        start: With ``lsq``: learned steps start from the ``mean`` magnitude, or where the squared error is least
            (``mse``; shifts then start with the grid centred on each mean).
    """

    bits: Bits = 8
    method: WeightMethod = "uniform"
    granularity: Literal["channel", "tensor"] = "channel"
    symmetric: bool = True
    range: RangeChoice = "mse"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    start: StartMethod = "mean"


class Activations(Frozen):
    """How the inputs of layers and the operands of attention are quantized.

    Attributes:
        bits: 2-8, or 32 for float.
        method: ``lsq`` or ``uniform``.
        granularity: What shares a step: the whole ``tensor``, a ``channel``, or a ``token``. With ``token`` the values
            of attention have a step per channel and the softmax output one per query; ``head`` is the same, but in
            attention each head has steps of its own, and one for its softmax output.
        dynamic: Quantize each row relative to its largest magnitude, found at run time: each token of a Linear's input,
            and in attention each query, key and row of the softmax output. Images, feature maps and values, the rows
            of which are summed over, stay as they are.
        shifts: With ``lsq``: learned shifts ahead of the quantizer and behind it.
        symmetric: With ``uniform``: a grid around 0; otherwise each step has a zero point.
        range: With ``uniform``: how the range is chosen; ``auto`` is ``minmax`` at 8 bits and ``mse`` below.
        percentile: With ``range: percentile``: the share of the values that the range covers, in percent.
        start: With ``lsq``: learned steps start from the ``mean`` magnitude, each behind layers that are quantized
            already, or where the squared error is least (``mse``; from activations in float, and shifts then start
            with the grid centred on each mean).
    """

    bits: Bits = 8
    method: ActivationMethod = "uniform"
    granularity: Literal["tensor", "channel", "token", "head"] = "tensor"
    dynamic: bool = False
    shifts: bool = False
    symmetric: bool = False
    range: RangeChoice = "mse"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    start: StartMethod = "mean"


class Layer(Frozen):
    """Weights and activations of one kind of layer."""

    weights: Weights = Weights()
    activations: Activations = Activations()


class Override(Frozen):
    """What differs in the modules whose names match ``target``.

    Attributes:
        target: Shell-style pattern of module names, such as ``blocks.*.mlp.fc2``; an attention block's two products
            go by its own name.
        weights: Replaces the recipe's ``weights`` there.
        activations: Replaces the recipe's ``activations`` there.
    """

    target: str = Field(min_length=1)
    weights: Weights | None = None
    activations: Activations | None = None


class Attention(Frozen):
    """What is done to attention.

    Attributes:
        products: Quantize the operands of both matrix products (query, key, softmax output, value).
        qkr: Query-key reparameterization: quantize the product of the two projections instead of each (OFQ).
        query_bias: With ``qkr``: keep the term of the query bias, which makes it exact; OFQ's authors drop it.
    """

    products: bool = True
    qkr: bool = False
    query_bias: bool = True


class Calibration(Frozen):
    """Where the start values of the quantizers come from.

    Attributes:
        images: Number of calibration images.
        batch_size: Images in one forward pass; bounds memory. Activations with ``lsq`` and ``start: mean`` need a pass
            for each quantizer if it is less than ``images``.
    """

    images: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1)


class Recipe(Frozen):
    """Everything that ``quantize`` and ``train`` need to know but the model and the data.

    Attributes:
        name: How the catalogue calls it.
        description: One line for people.
        source: Paper and figures it follows, if any.
        model: Shell-style pattern of the architectures it is for; None for any.
        weights: Of every Linear and Conv2d that is neither first nor last.
        activations: Of every such layer's input and of attention's operands.
        first: The patch embedding (timm's ``first_conv``).
        last: The classifiers (timm's ``classifier``).
        attention: What is done to attention.
        layers: Exceptions by module name; later ones win.
        calibration: Where start values come from.
        ptq: What ``quantize`` does beyond calibration, in this order.
        training: How ``train`` trains, or None if the recipe does not say.
    """

    name: str = "custom"
    description: str = ""
    source: str = ""
    model: str | None = None
    weights: Weights = Weights()
    activations: Activations = Activations()
    first: Layer = Layer()
    last: Layer = Layer()
    attention: Attention = Attention()
    layers: tuple[Override, ...] = ()
    calibration: Calibration = Calibration()
    ptq: tuple[Step, ...] = ()
    training: Training | None = None
