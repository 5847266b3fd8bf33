"""From the settings of a phase to its remedies."""

from torch import nn

from ofqctl.oscillation.remedy import Remedy
from ofqctl.recipe.methods import REMEDIES
from ofqctl.recipe.training import Phase


def remedies_of(phase: Phase, model: nn.Module, steps: int) -> list[Remedy]:
    """What a phase does against oscillation.

    Args:
        phase: Its settings.
        model: Quantized and calibrated, on its device.
        steps: Optimizer steps of the whole phase.
    """
    return [REMEDIES[name].target(model, settings, steps) for name, settings in phase.remedies.items()]


def check_remedies(phase: Phase, model: nn.Module) -> None:
    """Find out ahead of all training whether the model has what the remedies of a phase are for.

    Raises:
        RecipeError: It has not.
    """
    for name, settings in phase.remedies.items():
        REMEDIES[name].target.check(model, settings)
