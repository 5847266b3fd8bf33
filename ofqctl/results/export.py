"""The results of ``ofqctl export``: a verified ONNX file, or packed weights."""

from typing import Literal

from ofqctl.results.document import Document, Gives, IfAny, Number, Part
from ofqctl.results.evaluate import Kind
from ofqctl.results.onnx import Target
from ofqctl.results.size import Ledger


class DifferentCode(Part):
    """A code that differs from torch's although it was quantized from the same value.

    Attributes:
        operand: Name of the quantizer.
        index: Index of the code.
        from_boundary: Torch's distance to a rounding threshold, in grid steps.
    """

    operand: str
    index: tuple[int, ...]
    from_boundary: float


class Exactness(Part):
    """Results of comparing the parts of a graph on the values of torch.

    Attributes:
        weights: Number of weights that were decoded from the file and compared with the model's.
        wrong_weights: Names of the weights that are not identical.
        products: Number of products compared.
        codes: Number of codes compared.
        different: Number of codes that differ although they were quantized from the same values.
        listed: The first of these.
        worst: Largest difference of a product, relative to its largest value.
        worst_product: Name of that product.
        between: Largest difference between the products, relative to the largest value there.
        worst_between: Name of the quantizer with that difference at its input.
        moved: Number of codes that change when they are quantized from the graph's values between the products.
        tolerance: Largest ``worst`` that is accepted.
        tolerance_between: Largest ``between`` that is accepted.
        exact: Whether nothing is wrong.
    """

    weights: int
    wrong_weights: tuple[str, ...]
    products: int
    codes: int
    different: int
    listed: tuple[DifferentCode, ...]
    worst: Number
    worst_product: str
    between: Number
    worst_between: str
    moved: int
    tolerance: float
    tolerance_between: float
    exact: bool


class EndToEnd(Part):
    """The logits of the graph beside those of torch.

    Attributes:
        images: Number of images.
        agreement: Share of the images with the same predicted label as torch, in percent, for the ``graph``, for the
            noise ``floor``, and for each further program that runs the graph.
        cosine: Lowest cosine of an embedding with torch's, for the same; empty for classes, as ``agreement`` is for
            embeddings.
        difference: Median over the images of the largest difference of a logit, feature or token, relative to the
            largest of torch; for the same.
        top1: Accuracy of ``torch`` and all but the floor in percent; empty without labels.
    """

    images: int
    agreement: dict[str, float]
    cosine: dict[str, float]
    difference: dict[str, Number]
    top1: dict[str, float]


class Verification(Part):
    """What the verification found.

    Attributes:
        exactness: Product by product.
        end_to_end: End to end.
        data: Name of the images, or ``synthetic``.
    """

    exactness: Exactness
    end_to_end: EndToEnd
    data: str


class ProductInFloat(Part):
    """A product that the graph computes in float, and why."""

    product: str
    reason: str


class Products(Part):
    """The products in the graph.

    Attributes:
        integer: Number of those on integers.
        float: Number of those in float.
        reasons: Number of those in float by reason.
        left_float: Those in float.
    """

    integer: int
    float: int
    reasons: dict[str, int]
    left_float: tuple[ProductInFloat, ...]


class AboutRuntime(Part):
    """What a runtime makes of the products.

    Attributes:
        version: Its version.
        kernels: Number of products by kernel, of those on integers.
        float: Names of the products that it computes in float.
        vnni: Whether its kernels may saturate on x86 CPUs without VNNI.
        oldest: The oldest version of ONNX Runtime that loads the file.
    """

    version: str
    kernels: dict[str, int]
    float: tuple[str, ...]
    vnni: bool
    oldest: IfAny[str] = None


class ExportOnnxResult(Document):
    """A verified ONNX file.

    Attributes:
        output: Path of the file.
        model: Name or path of the model.
        kind: Whether the model is a ``float`` model by name or a ``run``.
        gives: What the model gives for an image.
        outputs: Names of the file's outputs.
        target: What the graph is for; None if nothing in it is quantized.
        opset: Opset of its operators.
        batch: Number of images in one pass; None for any.
        input: ``normalized`` float values, or ``pixels``, uint8.
        bytes: Size of the file; with that of the weights beside an IR.
        run: Sizes of the parts of the run; None for a float model.
        products: How many products are on integers, and why others are not.
        runtimes: What each runtime makes of them.
        verification: What the verification found.
        seconds: Time that it took.
    """

    command: Literal["export"] = "export"
    output: str
    model: str
    kind: Kind
    gives: Gives
    outputs: tuple[str, ...]
    target: Target | None
    opset: int
    batch: int | None
    input: Literal["normalized", "pixels"]
    bytes: int
    run: Ledger | None
    products: Products
    runtimes: dict[str, AboutRuntime]
    verification: Verification
    seconds: float


class Page(Part):
    """A page for browsers.

    Attributes:
        folder: Path of its folder.
        files: Names of its files.
        bytes: Size of all of them.
        runtime: Version of onnxruntime-web.
        offline: Whether that is one of the files; otherwise the page loads it from the network.
    """

    folder: str
    files: tuple[str, ...]
    bytes: int
    runtime: str
    offline: bool


class ExportWebResult(ExportOnnxResult):
    """A page for browsers, with the verified ONNX file in it.

    Attributes:
        page: The page.
    """

    page: Page


class ExportSafetensorsResult(Document):
    """Packed weights.

    Attributes:
        output: Path of the file or folder.
        layout: Its layout.
        bytes: Size of what was written.
    """

    command: Literal["export"] = "export"
    output: str
    layout: Literal["ofqctl", "compressed-tensors"]
    bytes: int
