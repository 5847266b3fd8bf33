"""Iterative weight freezing (Nagel et al., ICML 2022, arXiv 2203.11086, Algorithm 1)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.flips import Flips
from ofqctl.oscillation.holding import Before, Holding, encode, groups_of, learned_step
from ofqctl.oscillation.remedy import RemedySettings
from ofqctl.oscillation.schedule import Schedule
from ofqctl.quantizers.cores import step_gradient_scale
from ofqctl.recipe.methods import REMEDIES

_ROUNDS = 10  # of moving frozen weights along with a step that follows from the weights, and so moves on


class Freezing(RemedySettings):
    """Iterative freezing (Nagel et al. 2022): a weight that oscillates too often keeps its code for good.

    Attributes:
        start: Frequency above which a weight is frozen, when freezing sets in.
        end: The same at the last step of the phase; a cosine leads there.
        delay: Share of the phase's steps ahead of the first freezing.
        momentum: Weight of the newest step in the frequency and in the average of the codes.
    """

    start: float = Field(default=0.1, gt=0.0, le=1.0)
    end: float = Field(default=0.01, gt=0.0, le=1.0)
    delay: float = Field(default=0.25, ge=0.0, lt=1.0)
    momentum: float = Field(default=0.01, gt=0.0, lt=1.0)

    def at_end(self) -> Self:
        """The end's value from the first step on."""
        return self.model_copy(update={"start": self.end, "delay": 0.0})


@REMEDIES.register("freezing", Freezing, traits=["holds_codes"])
class IterativeFreezing(Holding):
    """Fixes the code of a weight that oscillates too often, for good, to the rounded moving average of its codes.

    A weight whose frequency exceeds the limit of the step is put into the middle of the bin of that average and held
    from then on. The average lags behind a weight that drifts while it oscillates, as those of 8 bits do; so of the
    two codes that the weight last flipped between the nearer one is taken. Which weights are frozen is part of the
    model and of its checkpoints, so that a later phase with freezing goes on holding them.

    The value of a frozen weight is a constant code on a grid whose step goes on learning:

    * to the gradient of a learned step (LSQ) it adds its code, in the paper the derivative of ``step * code``; a weight
      whose code may change adds the distance from its position to its code;
    * after each optimizer step its latent weight lies in the middle of the bin of its code on the grid as it is now.

    Where the step follows from the weights (StatsQ), frozen ones among them, moving them along with it would move it
    again, even where nothing is trained. There a latent weight keeps its value until the step has moved so far that its
    code would change, and goes to the middle of its bin only then. In the rare case that the step does not come to rest
    in this way, all weights that share it go back to where they were.

    A weight is frozen an optimizer step later if freezing it would change another frozen code of its group.

    Args:
        model: Quantized and calibrated, on its device; see :class:`~ofqctl.oscillation.holding.Holding`.
        settings: Limits and schedule.
        steps: Optimizer steps of the phase.
    """

    def __init__(self, model: nn.Module, settings: Freezing, steps: int) -> None:
        sites = dict(weight_sites(model))
        super().__init__(sites.values())
        self._limit = Schedule(settings.start, settings.end, settings.delay, steps)
        self._momentum = settings.momentum
        self._step = 0
        with torch.no_grad():
            self._followed = {site: _Followed(name, site) for name, site in sites.items()}
        for site in self.sites:
            assert site.weight_quantizer is not None
            self._hooks.append(site.weight_quantizer.register_forward_hook(self._freezer(site), prepend=True))

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The frozen ones."""
        assert site.weight_quantizer is not None and site.weight_quantizer.frozen is not None
        return site.weight_quantizer.frozen

    def settle(self, before: Before) -> None:
        """Give frozen weights their codes again, and count flips."""
        followed = self._followed[before.site]
        encoded = _with_codes_of(before) if followed.any_frozen else encode(before.site, before.site.latent())
        followed.update(encoded, self._momentum)

    def after_step(self) -> None:
        """Give frozen weights their codes again, count flips, and freeze what oscillates too often."""
        super().after_step()
        limit = self._limit.at(self._step)
        self._step += 1
        if limit is not None:
            with torch.no_grad():
                for followed in self._followed.values():
                    followed.freeze(limit)

    def state_dict(self) -> dict[str, Tensor]:
        """``step``, and of each weight ``NAME.codes``, ``.direction``, ``.frequency`` and ``.average``."""
        state = {"step": torch.tensor(self._step)}
        for followed in self._followed.values():
            state |= {f"{followed.name}.{key}": tensor.clone() for key, tensor in followed.tensors().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._step = int(state["step"])
        for followed in self._followed.values():
            for key, tensor in followed.tensors().items():
                tensor.copy_(state[f"{followed.name}.{key}"])

    def _freezer(self, site: WeightSite) -> Any:
        """A forward hook of a weight quantizer: at frozen entries, gradients reach the step alone."""

        def freeze(_quantizer: Any, inputs: tuple[Tensor], value: Tensor) -> Tensor | None:
            if not (value.requires_grad and self._followed[site].any_frozen):
                return None
            before = self.look(site, inputs[0].detach())
            return torch.where(before.held, _value_of_codes(before).to(value.dtype), value)

        return freeze


def _value_of_codes(before: Before) -> Tensor:
    """The value of codes taken as constants: differentiable with respect to a learned step alone, scaled as in LSQ."""
    encoded, step = before.encoded, learned_step(before.site)
    if step is not None:
        scale = step_gradient_scale(encoded.grid.range.high, before.latent.numel() / step.numel())
        encoded = replace(encoded, step=encoded.step + (step - step.detach()) * scale)
    return encoded.decode()


def _with_codes_of(before: Before) -> Encoded:
    """Give the held entries of a weight the codes they had, on the grid as it is now; the codes of all entries."""
    site, held, codes = before.site, before.held, before.encoded.codes
    if hasattr(site.weight_quantizer, "step"):  # it does not follow from the weights
        now = encode(site, site.latent())
        now = replace(now, codes=torch.where(held, codes, now.codes))
        site.hold(held, now.decode())
        return now
    site.hold(held, before.latent)
    now, changed = _recentred(before)
    if bool(changed.any()):
        site.hold(groups_of(changed, now.step), before.latent)
        now, _ = _recentred(before)  # a merged product goes back to the rounding of float32
    return now


def _recentred(before: Before) -> tuple[Encoded, Tensor]:
    """Put held entries whose code has changed into the middle of their bins, over and over as the step follows them.

    Returns:
        The codes of all entries; where held ones still differ from what they were.
    """
    site, codes = before.site, before.encoded.codes
    for _ in range(_ROUNDS):
        now = encode(site, site.latent())
        changed = (now.codes != codes) & before.held
        if not bool(changed.any()):
            break
        site.hold(changed, replace(now, codes=codes).decode())
    return now, changed


class _Followed:
    """One weight: its flips, and the moving average of its codes.

    Attributes:
        name: Of the weight.
        any_frozen: Whether some of its entries are frozen.
    """

    def __init__(self, name: str, site: WeightSite) -> None:
        quantizer, latent = site.weight_quantizer, site.latent()
        assert quantizer is not None
        if quantizer.frozen is None:
            quantizer.frozen = torch.zeros_like(latent, dtype=torch.bool)
        quantizer.frozen = quantizer.frozen.to(latent.device)
        self.name, self.any_frozen = name, bool(quantizer.frozen.any())
        self._site, self._quantizer = site, quantizer
        encoded = encode(site, latent)
        self.flips = Flips(encoded)
        self.average = encoded.codes.float()

    def tensors(self) -> dict[str, Tensor]:
        """By the names in the state."""
        flips = self.flips
        named = {"codes": flips.codes, "direction": flips.direction, "frequency": flips.frequency}
        return named | {"average": self.average}

    def update(self, encoded: Encoded, momentum: float) -> None:
        """Take note of the codes after a step."""
        self.flips.update(encoded, momentum)
        self.average.lerp_(encoded.codes.float(), momentum)

    def freeze(self, limit: float) -> None:
        """Freeze the weights whose frequency is above ``limit``."""
        site, frozen = self._site, self._quantizer.frozen
        assert frozen is not None
        new = (self.flips.frequency > limit) & ~frozen
        if not bool(new.any()):
            return
        before = site.latent().clone()
        encoded = encode(site, before)
        wanted = torch.where(new, self._settled(encoded.codes.float()), encoded.codes).to(encoded.codes.dtype)
        site.hold(new, replace(encoded, codes=wanted).decode())
        changed = (encode(site, site.latent()).codes != wanted) & (frozen | new)
        undone = groups_of(changed, encoded.step)
        site.hold(undone, before)
        self._quantizer.frozen = frozen | (new & ~undone)
        self.any_frozen = bool(self._quantizer.frozen.any())

    def _settled(self, codes: Tensor) -> Tensor:
        """The rounded average of each weight, within the two codes that it last flipped between."""
        other = codes - self.flips.direction
        return self.average.round().clamp(torch.minimum(codes, other), torch.maximum(codes, other))
