"""Compute logits and figures in the same way for float models, quantized models and files."""

from ofqctl.evaluation.metrics import Metrics, evaluate, merged, paired, predict
from ofqctl.evaluation.subject import (
    Normalization,
    Subject,
    holds_run,
    of_model,
    of_onnx,
    of_run,
    open_run,
    open_subject,
)

__all__ = [
    "Metrics",
    "Normalization",
    "Subject",
    "evaluate",
    "holds_run",
    "merged",
    "of_model",
    "of_onnx",
    "of_run",
    "open_run",
    "open_subject",
    "paired",
    "predict",
]
