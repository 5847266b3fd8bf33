"""Descriptions of a model for its run directory and for the results of jobs."""

from pathlib import Path

from torch import nn

from ofqctl.artifact import QuantizationConfig, RunConfig, digest, make_ledger
from ofqctl.models import LoadedModel, gives
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.schema import Layer
from ofqctl.results.run import AboutRun, Bits, ModelBits


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


def about_run(model: nn.Module, config: RunConfig, weights: int) -> AboutRun:
    """The part that all results have: source of the model, bits, sizes, and what stayed in float.

    Args:
        model: The quantized model.
        config: Result of :func:`run_config`.
        weights: Size of ``model.safetensors`` in bytes.
    """
    quantization = config.quantization_config
    recipe, plan = quantization.recipe, quantization.plan
    return AboutRun(
        model=config.architecture,
        gives=gives(config.num_classes),
        source=config.source,
        recipe=recipe.name,
        bits=ModelBits(
            first=_bits(recipe.first),
            last=_bits(recipe.last),
            weights=recipe.weights.bits,
            activations=recipe.activations.bits,
        ),
        size=make_ledger(model, total=weights, float_model=quantization.float_bytes),
        quantized_modules=len(plan.modules),
        left_float=plan.left_float,
    )


def _bits(layer: Layer) -> Bits:
    return Bits(weights=layer.weights.bits, activations=layer.activations.bits)
