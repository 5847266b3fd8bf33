"""From the settings of a phase to its remedies."""

from torch import nn

from ofqctl.oscillation.cga import ConfidentFreezing
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
        remedies.append(ConfidentFreezing(model, phase.cga.boundary_range))
    if phase.freezing is not None:
        remedies.append(IterativeFreezing(model, phase.freezing, steps))
    if phase.dampening is not None:
        remedies.append(Dampening(model, phase.dampening, steps))
    return remedies
