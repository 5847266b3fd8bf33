"""The result of ``ofqctl inspect`` for an ONNX file, and what such a file says of itself."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ofqctl.results.document import Document, IfAny, Part

Target = Literal["onnxruntime", "openvino", "portable"]
"""What a graph is for: ``onnxruntime`` has operators that only ONNX Runtime knows, the others those of the standard, as
compilers recognize products of integers."""


class Said(BaseModel):
    """Part of the metadata of a file: keys that this program reads have types, others are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class SaidWeight(Said):
    """How a quantized weight is stored: its bits and shape."""

    bits: int
    shape: list[int]


class SaidProduct(Said):
    """How a product is computed.

    Attributes:
        kind: Its kind.
        weights: Bits of its weight; None without one.
        activations: Bits of its activations.
        float: Why it is computed in float, if it is.
    """

    kind: str
    weights: int | None
    activations: list[int]
    float: IfAny[str] = None


class SaidExactness(Said):
    """The comparison product by product: their number, and the largest difference relative to the largest value."""

    products: int
    worst: float | None


class SaidVerification(Said):
    """What the verification at export found; nothing for a foreign file."""

    exactness: IfAny[SaidExactness] = None


class FoundWeight(SaidWeight):
    """The same, with the ``bytes`` of the codes."""

    bytes: int


class FoundProduct(SaidProduct):
    """The same, with the ``kernel`` that it gets in the runtime."""

    kernel: str


class Port(Part):
    """An input or output of a file; lengths that may vary have names, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class OnnxBytes(Part):
    """Sizes in an ONNX file: codes of weights, other constants, the graph with its metadata, and the file."""

    codes: int
    constants: int
    graph: int
    total: int


class Described(BaseModel):
    """The model in an ONNX file.

    Attributes:
        format_version: Version of this description.
        written_by: Version of the program.
        architecture: timm's name of the architecture.
        num_classes: Number of outputs of the classifier.
        model_args: Further arguments that build the architecture.
        data_config: Preprocessing, as timm's ``create_transform`` takes it.
        label_names: Class ids in label order, or None if they are not known.
        recipe: Name of the recipe; None for a float model.
        target: What the graph is for; None for a float model.
        input: ``normalized`` float values, or ``pixels``, uint8.
        source: Where the float weights came from.
    """

    model_config = ConfigDict(extra="forbid")
    format_version: int
    written_by: str
    architecture: str
    num_classes: int
    model_args: dict[str, Any]
    data_config: dict[str, Any]
    label_names: list[str] | None
    recipe: str | None
    target: Target | None
    input: Literal["normalized", "pixels"]
    source: str


class InspectOnnxResult(Document):
    """An ONNX file.

    Attributes:
        onnx: Path of the file.
        description: Its description; None for a file of another program.
        opset: Opset of its standard operators.
        inputs: Name, type and shape of each input.
        outputs: Name, type and shape of each output.
        weights: How each quantized weight is stored; empty for a foreign file.
        products: How each product is computed, here and now; empty for a foreign file.
        runtimes: How runtimes compute the products, as found at export; empty for a foreign file.
        verification: What the verification at export found; empty for a foreign file.
        operators: Number of operators of each type in the file.
        run_operators: Number of operators of each type after the runtime's optimization.
        bytes: Sizes in the file.
        runtime: The runtime on this machine, with its version.
    """

    command: Literal["inspect"] = "inspect"
    onnx: str
    description: Described | None
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: dict[str, FoundWeight]
    products: dict[str, FoundProduct]
    runtimes: dict[str, Any]
    verification: SaidVerification
    operators: dict[str, int]
    run_operators: dict[str, int]
    bytes: OnnxBytes
    runtime: str
