"""Descriptions of a model for its run directory and for the results of jobs."""

from pathlib import Path
from typing import Any

from torch import nn

from ofqctl.artifact import QuantizationConfig, RunConfig, digest, make_ledger
from ofqctl.models import LoadedModel
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.schema import Layer


def default_output(architecture: str, recipe: Recipe) -> Path:
    """``runs/ARCHITECTURE-wWaA``."""
    return Path("runs") / f"{architecture}-w{recipe.weights.bits}a{recipe.activations.bits}"


def float_model_bytes(model: nn.Module) -> int:
    """Size of a float model's weights in a safetensors file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def run_config(loaded: LoadedModel, recipe: Recipe, plan: Plan, weights: bytes, float_bytes: int) -> RunConfig:
    """The content of ``config.json``.

    Args:
        loaded: The float model that the run was made from.
        recipe: The recipe of the run.
        plan: The plan of the run.
        weights: Content of ``model.safetensors``.
        float_bytes: Size of the float model's weights.
    """
    return RunConfig(
        architecture=loaded.architecture,
        num_classes=loaded.num_classes,
        model_args=loaded.model_kwargs,
        pretrained_cfg=loaded.pretrained_cfg,
        data_config=loaded.data_config,
        label_names=loaded.pretrained_cfg.get("label_names"),
        source=loaded.source,
        quantization_config=QuantizationConfig(
            recipe=recipe, plan=plan, sha256=digest(weights), float_bytes=float_bytes
        ),
    )


def about_run(model: nn.Module, config: RunConfig, weights: bytes) -> dict[str, Any]:
    """The part that all results have: source of the model, bits, sizes, and what stayed in float.

    Args:
        model: The quantized model.
        config: Result of :func:`run_config`.
        weights: Content of ``model.safetensors``.
    """
    quantization = config.quantization_config
    recipe, plan = quantization.recipe, quantization.plan
    size = make_ledger(model, total=len(weights), float_model=quantization.float_bytes)
    return {
        "model": config.architecture,
        "source": config.source,
        "recipe": recipe.name,
        "bits": {part: _bits(layer) for part, layer in (("first", recipe.first), ("last", recipe.last))}
        | _bits(recipe),
        "size": size.as_dict(),
        "quantized_modules": len(plan.modules),
        "left_float": [left.model_dump() for left in plan.left_float],
    }


def _bits(layer: Layer | Recipe) -> dict[str, int]:
    return {"weights": layer.weights.bits, "activations": layer.activations.bits}
