"""Compute logits and figures in the same way for float models, quantized models and files."""

from ofqctl.evaluation.metrics import Metrics, evaluate, merged, paired, predict
from ofqctl.evaluation.runs import FoundRun, find_run, holds_run, hub_run, open_run
from ofqctl.evaluation.subject import Normalization, Subject, of_model, of_onnx, of_run, open_subject

__all__ = [
    "FoundRun",
    "Metrics",
    "Normalization",
    "Subject",
    "evaluate",
    "find_run",
    "holds_run",
    "hub_run",
    "merged",
    "of_model",
    "of_onnx",
    "of_run",
    "open_run",
    "open_subject",
    "paired",
    "predict",
]
