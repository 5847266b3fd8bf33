"""Compute outputs and figures in the same way for float models, quantized models and files."""

from ofqctl.evaluation.embeddings import (
    Comparison,
    Embeddings,
    compare_embeddings,
    embed,
    embeddings_of,
    likeness,
    merged_embeddings,
)
from ofqctl.evaluation.metrics import Metrics, evaluate, merged, paired, predict
from ofqctl.evaluation.reference import float_model_of
from ofqctl.evaluation.runs import FoundRun, find_run, holds_run, hub_run, open_run
from ofqctl.evaluation.subject import Normalization, Subject, of_model, of_onnx, of_run, open_subject

__all__ = [
    "Comparison",
    "Embeddings",
    "FoundRun",
    "Metrics",
    "Normalization",
    "Subject",
    "compare_embeddings",
    "embed",
    "embeddings_of",
    "evaluate",
    "find_run",
    "float_model_of",
    "holds_run",
    "hub_run",
    "likeness",
    "merged",
    "merged_embeddings",
    "of_model",
    "of_onnx",
    "of_run",
    "open_run",
    "open_subject",
    "paired",
    "predict",
]
