"""From the settings of a phase to its remedies."""

from torch import nn

from ofqctl.oscillation.cga import ConfidentFreezing, targeted
from ofqctl.oscillation.dampening import Dampening
from ofqctl.oscillation.freezing import IterativeFreezing
from ofqctl.oscillation.remedy import Remedy
from ofqctl.recipe.training import Phase


def remedies_of(phase: Phase, model: nn.Module, steps: int) -> list[Remedy]:
    """What a phase does against oscillation.

    Args:
        phase: Its settings.
        model: Quantized and calibrated, on its device.
        steps: Optimizer steps of the whole phase.
    """
    remedies: list[Remedy] = []
    if phase.cga is not None:
        remedies.append(ConfidentFreezing(model, phase.cga))
    if phase.freezing is not None:
        remedies.append(IterativeFreezing(model, phase.freezing, steps))
    if phase.dampening is not None:
        remedies.append(Dampening(model, phase.dampening, steps))
    return remedies


def check_targets(phase: Phase, model: nn.Module) -> None:
    """Find out ahead of all training whether the model has the layers that the remedies of a phase are for.

    Raises:
        RecipeError: It has not.
    """
    if phase.cga is not None:
        targeted(model, phase.cga)
