"""Shrinking levels and thresholds: the first phase of AOQ (ICCV 2025).

Points and thresholds of AOQ's weights shrink together along a cosine while weights are trained, so that weights lie
apart from the thresholds when levels are learned again. It belongs to the first fifth of a training with ``aoq``
weights and costs nothing.

The scale at an optimizer step is the one at the start of the phase times the value of a cosine from 1 to ``end``; what
the optimizer does to it meanwhile is undone.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.quantizers import AOQ
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import Scheduled, ScheduledSettings

_SCALES = ("step", "threshold")


class Shrinking(ScheduledSettings):
    """Shrinking of levels and thresholds.

    Attributes:
        start: Share of the first scale when it starts.
        end: Share of it at the last optimizer step of the phase.
        delay: Share of the phase's optimizer steps that pass before it starts.
    """

    start: float = Field(default=1.0, gt=0.0)
    end: float = Field(default=0.3, gt=0.0)
    delay: float = Field(default=0.0, ge=0.0, lt=1.0)


@REMEDIES.register("shrinking", Shrinking, traits=["quantized_weights"])
class ShrinkingScales(Scheduled):
    """Scales the steps and thresholds of AOQ's weights.

    Args:
        model: The quantized and calibrated model.
        settings: The schedule.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Shrinking, steps: int) -> None:
        super().__init__(settings.over(steps))
        self._found = _quantizers(model)
        self._starts = {name: (own.step.detach().clone(), own.threshold.clone()) for name, own in self._found.items()}

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Check that ``model`` has weights with scales to shrink.

        Raises:
            RecipeError: It has none.
        """
        if not _quantizers(model):
            raise RecipeError(
                "shrinking: scales the levels and thresholds of aoq weights, and this model has none",
                hint="--set weights.method=aoq weights.granularity=tensor",
            )

    def after_step(self) -> None:
        """Set the scales that the schedule says."""
        strength = self.strength
        share = 1.0 if strength is None else strength
        super().after_step()
        for name, quantizer in self._found.items():
            step, threshold = self._starts[name]
            quantizer.scale_to(share * step, share * threshold)

    def state_dict(self) -> dict[str, Tensor]:
        """``step``, and for each weight ``NAME`` its scales at the start, ``NAME.step`` and ``NAME.threshold``."""
        starts = {
            f"{name}.{which}": tensor.clone()
            for name, scales in self._starts.items()
            for which, tensor in zip(_SCALES, scales, strict=True)
        }
        return super().state_dict() | starts

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        super().load_state_dict(state)
        for name, scales in self._starts.items():
            for which, tensor in zip(_SCALES, scales, strict=True):
                tensor.copy_(state[f"{name}.{which}"])


def _quantizers(model: nn.Module) -> dict[str, AOQ]:
    """AOQ's quantizers, by the names of their weights."""
    return {n: site.weight_quantizer for n, site in weight_sites(model) if isinstance(site.weight_quantizer, AOQ)}
