"""The front matter of a card: what the hub reads of it, to file the model under its task, base model and data."""

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ofqctl.hub.contents import Contents
from ofqctl.hub.figures import Evaluation, Measured, hub_data, split_of
from ofqctl.hub.origin import BaseModel

_CLASSES, _FEATURES = "image-classification", "image-feature-extraction"
_ELSEWHERE = "custom"  # data that is not on the hub, where a name might be that of other data


def front_matter(contents: Contents, figures: Measured, base: BaseModel, repository: str) -> ModelCardData:
    """The keys and values; a key without a value is left out.

    Args:
        contents: What goes to the hub.
        figures: Figures of the run.
        base: The float model that it was made from.
        repository: ``ORG/NAME``.
    """
    config = contents.run.config
    task = _CLASSES if config.num_classes else _FEATURES
    quantized = bool(config.quantization_config.plan.modules)
    results = list(_evaluations(figures.evaluation, task))
    front: dict[str, Any] = dict(base.front_matter)
    if base.repository:
        front["base_model_relation"] = "quantized" if quantized else "finetune"
    data = sorted({found for name in figures.data if (found := hub_data(name))})
    return ModelCardData(
        library_name="ofqctl",
        pipeline_tag=task,
        tags=list(_tags(contents)),
        base_model=base.repository,
        datasets=data or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=repository.partition("/")[2] if results else None,
        eval_results=results or None,
        **front,
    )


def _tags(contents: Contents) -> Iterator[str]:
    recipe = contents.run.config.quantization_config.recipe
    yield from ("ofqctl", "timm", "safetensors", "vision-transformer")
    if contents.run.config.quantization_config.plan.modules:
        yield from ("quantized", f"w{recipe.weights.bits}a{recipe.activations.bits}")
    if contents.graphs:
        yield "onnx"


def _evaluations(evaluation: Evaluation | None, task: str) -> Iterator[EvalResult]:
    """The accuracy of the run; a number up to 1, as the hub's metrics are."""
    if evaluation is None or evaluation.data is None:
        return
    name, split = split_of(evaluation.data)
    images = {"images": evaluation.own.images} if evaluation.own.images else None
    for words, value in evaluation.own.shares.items():
        yield EvalResult(
            task_type=task,
            dataset_type=hub_data(evaluation.data) or _ELSEWHERE,
            dataset_name=name,
            dataset_split=split,
            dataset_args=images,
            metric_type=_metric(words),
            metric_name=words,
            metric_value=round(value / 100, 6),
        )


def _metric(words: str) -> str:
    """The hub's name of a metric."""
    return "recall" if words.startswith("recall") else "accuracy"
