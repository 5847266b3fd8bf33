"""Trace a torch model to a graph of ONNX operators, with markers where tensors are quantized."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import IdentityEliminationPass
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofqctl.errors import ModelError
from ofqctl.export.codes import OPSET
from ofqctl.export.sites import Sites
from ofqctl.export.splitting import join_slices
from ofqctl.results.document import Gives

INPUT = "image"
_FOLDED = 64  # elements; larger constants are computed by the runtime at load


def output_names(gives: Gives, *, tokens: bool) -> tuple[str, ...]:
    """What the outputs of a file are called.

    Args:
        gives: What the model gives.
        tokens: Whether patch tokens stand beside its embedding.
    """
    if gives == "classes":
        return ("logits",)
    return ("embedding", "tokens") if tokens else ("embedding",)


def trace(
    model: nn.Module,
    size: tuple[int, int, int],
    *,
    batch: int | None,
    pixels: bool,
    sites: Sites | None = None,
    outputs: Sequence[str] = ("logits",),
) -> onnx.ModelProto:
    """Trace one forward pass; the input is called ``image``.

    Args:
        model: The model in evaluation mode; marked if it is quantized.
        size: Size of its input, (3, H, W).
        batch: Number of images in one pass; None for any number.
        pixels: Whether the input is uint8, see `ofqctl.export.pixels`.
        sites: Filled with the products as they are traced.
        outputs: Names of what the model gives.

    Raises:
        ModelError: torch cannot trace the model, or not for any number of images.
    """
    example = torch.zeros(batch or 2, *size, dtype=torch.uint8 if pixels else torch.float32)
    if sites is not None:
        sites.products.clear()
    try:
        with quietly(), sdpa_kernel(SDPBackend.MATH):  # with a mask, no other gives the strides that torch.onnx expects
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # torch.export has no exception class for models that it cannot trace
        cause = error.__cause__ or error  # what torch.onnx wraps is more exact than its advice
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ModelError(
            f"export: {type(model).__name__} cannot be traced{'' if batch else ' for any number of images'}: {reason}",
            hint=None if batch else "--batch 1 fixes the number of images",
        ) from error
    assert program is not None
    onnxscript.optimizer.optimize_ir(
        program.model, num_iterations=1, input_size_limit=_FOLDED, output_size_limit=_FOLDED
    )
    IdentityEliminationPass()(program.model)  # all that a second iteration would add
    model = program.model_proto
    join_slices(model)
    return model


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress what other programs print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
