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
