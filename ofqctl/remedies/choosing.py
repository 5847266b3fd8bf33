"""Create the remedies of a phase from its settings."""

from torch import nn

from ofqctl.errors import RecipeError
from ofqctl.recipe.methods import REMEDIES
from ofqctl.recipe.training import Phase
from ofqctl.remedies.remedy import Remedy


def remedies_of(phase: Phase, model: nn.Module, steps: int) -> list[Remedy]:
    """The remedies that a phase asks for.

    Args:
        phase: Settings of the phase.
        model: The quantized and calibrated model, on its device.
        steps: Number of optimizer steps in the whole phase.
    """
    return [REMEDIES[name].target(model, settings, steps) for name, settings in phase.remedies.items()]


def prepare_remedies(phase: Phase, model: nn.Module) -> None:
    """Add the tensors that the remedies of a phase need to the model, before it is copied and trained."""
    for name, settings in phase.remedies.items():
        REMEDIES[name].target.prepare(model, settings)


def check_remedies(phase: Phase, model: nn.Module, *, amp: bool) -> None:
    """Check before training that the remedies of a phase can work on the model.

    Args:
        phase: Settings of the phase.
        model: The quantized and calibrated model.
        amp: Whether training autocasts to bfloat16.

    Raises:
        RecipeError: A remedy finds nothing in the model to work on, or does not work with autocast.
    """
    for name, settings in phase.remedies.items():
        if amp and "float32" in REMEDIES[name].traits:
            raise RecipeError(
                f"phase '{phase.name}': {name} needs gradients in float32, and autocast computes in bfloat16",
                hint="train without --amp",
            )
        REMEDIES[name].target.check(model, settings)
