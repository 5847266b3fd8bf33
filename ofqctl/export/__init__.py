"""ONNX files of quantized and float models, and the check of each against torch.

Read in this order: ``marking`` (timm's forward leaves markers where tensors are quantized), ``tracing`` (torch writes
the graph), ``lowering`` (markers become standard operators), ``verification`` (product by product) and ``noise`` (end
to end).
"""

import sys

from ofqctl import FunctionAndPackage
from ofqctl.export.browser import MODEL, PAGE, WebRuntime, check_runs, check_shown, stale, web_runtime, write_page
from ofqctl.export.kernels import about_runtimes
from ofqctl.export.latency import product_seconds
from ofqctl.export.looking import OnnxContents, look_into
from ofqctl.export.metadata import Description, set_metadata
from ofqctl.export.noise import EndToEnd, compare_end_to_end
from ofqctl.export.pixels import normalize, to_pixels
from ofqctl.export.runtime import OnnxModel, Runtime, open_session
from ofqctl.export.sealing import seal_again
from ofqctl.export.verification import Exactness, check_exactness
from ofqctl.export.writing import OnnxGraph, write_graph
from ofqctl.results.onnx import Target

__all__ = [
    "MODEL",
    "PAGE",
    "Description",
    "EndToEnd",
    "Exactness",
    "OnnxContents",
    "OnnxGraph",
    "OnnxModel",
    "Runtime",
    "Target",
    "WebRuntime",
    "about_runtimes",
    "check_exactness",
    "check_runs",
    "check_shown",
    "compare_end_to_end",
    "look_into",
    "normalize",
    "open_session",
    "product_seconds",
    "seal_again",
    "set_metadata",
    "stale",
    "to_pixels",
    "web_runtime",
    "write_graph",
    "write_page",
]

sys.modules[__name__].__class__ = FunctionAndPackage
