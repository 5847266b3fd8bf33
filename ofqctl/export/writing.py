"""Convert a torch model to an ONNX model with metadata."""

from contextlib import nullcontext
from dataclasses import dataclass

import onnx
from torch import nn

from ofqctl.errors import ArtifactError, ModelError
from ofqctl.export.lowering import Lowered, lower
from ofqctl.export.marking import marked
from ofqctl.export.metadata import Description, about_products, about_weights, set_metadata
from ofqctl.export.pixels import taking_pixels
from ofqctl.export.sealing import sealed
from ofqctl.export.sites import Product, Sites
from ofqctl.export.tracing import output_names, trace
from ofqctl.models import gives
from ofqctl.results.onnx import Target

_LARGEST = 2**31 - 1  # bytes; largest size of a protobuf message


@dataclass
class OnnxGraph:
    """A graph and its products.

    Attributes:
        lowered: The graph with the places of its products.
        products: Products by name.
    """

    lowered: Lowered
    products: dict[str, Product]

    @property
    def model(self) -> onnx.ModelProto:
        """The complete ONNX model."""
        return self.lowered.model

    def serialize(self) -> bytes:
        """The content of the file, with its digest.

        Raises:
            ArtifactError: The graph is not valid ONNX, or is too large for one file.
        """
        if self.model.ByteSize() > _LARGEST:
            raise ArtifactError(f"export: the graph takes {self.model.ByteSize()} bytes; a file can have {_LARGEST}")
        try:
            onnx.checker.check_model(self.model)
        except onnx.checker.ValidationError as error:
            raise ArtifactError(f"export: the graph is not valid ONNX: {error}") from error
        return sealed(self.model.SerializeToString())


def write_graph(
    model: nn.Module, description: Description, target: Target, batch: int | None, *, tokens: bool = False
) -> OnnxGraph:
    """Trace ``model`` and lower it.

    Args:
        model: A float or quantized model, in evaluation mode, on the CPU.
        description: Description to write to the file.
        target: What the graph is for.
        batch: Number of images in one pass; None for any number.
        tokens: Whether the model gives patch tokens beside its embedding, see `giving_tokens`.

    Raises:
        ModelError: torch cannot trace the model.
    """
    channels, height, width = description.data_config["input_size"]
    size = (int(channels), int(height), int(width))
    outputs = output_names(gives(description.num_classes), tokens=tokens)
    pixels = description.input == "pixels"
    normalizing = taking_pixels(model, description.data_config) if pixels else nullcontext()
    with marked(model, target) as sites, normalizing:
        traced = trace(model, size, batch=batch, pixels=pixels, sites=sites, outputs=outputs)
    lowered = lower(traced, sites)
    _check_names(lowered, sites)
    set_metadata(
        lowered.model,
        model=description,
        weights=about_weights(lowered.weights),
        products=about_products(sites.products),
    )
    return OnnxGraph(lowered, sites.products)


def _check_names(lowered: Lowered, sites: Sites) -> None:
    """Check that every traced product is in the graph."""
    lost = set(sites.products) - {boundary.product.name for boundary in lowered.products}
    if lost:
        raise ModelError(f"export: {len(lost)} products are missing in the graph, the first is {min(lost)}")
