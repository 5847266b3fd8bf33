"""What a run directory says about the model in it."""

from torch import nn

from ofqctl.artifact import QuantizationConfig, RunConfig, digest
from ofqctl.models import LoadedModel
from ofqctl.recipe import Plan, Recipe


def float_model_bytes(model: nn.Module) -> int:
    """Size of a float model's weights, as a safetensors file holds them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def run_config(
    loaded: LoadedModel, recipe: Recipe, plan: Plan, weights: bytes, float_bytes: int
) -> RunConfig:
    """The contents of ``config.json``.

    Args:
        loaded: The float model the run came from.
        recipe: What was done.
        plan: What became of every module.
        weights: The bytes of ``model.safetensors``.
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
