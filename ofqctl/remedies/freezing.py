"""Iterative weight freezing (Nagel et al., ICML 2022, arXiv 2203.11086).

A weight whose code flips to and fro more often than a threshold allows is fixed at the code that it had most of the
time (Algorithm 1 of the paper). The threshold falls along a cosine, so that in the end hardly anything oscillates. For
any training at few bits; it counts flips in every optimizer step, which costs some percent.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.flips import Flips
from ofqctl.quantizers.cores import step_gradient_scale
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import Holding, StepStart, encode, groups_of, learned_step
from ofqctl.remedies.schedule import ScheduledSettings

_ROUNDS = 10  # iterations of moving frozen weights along with a grid step that is computed from them and so moves again


class Freezing(ScheduledSettings):
    """Iterative freezing (Nagel et al. 2022): the code of a weight that oscillates too often is permanently fixed.

    Attributes:
        start: Frequency above which a weight is frozen, when freezing starts.
        end: That frequency at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before freezing starts.
        momentum: Weight of the latest optimizer step in the frequency and in the average of the codes.
    """

    start: float = Field(default=0.1, gt=0.0, le=1.0)
    end: float = Field(default=0.01, gt=0.0, le=1.0)
    momentum: float = Field(default=0.01, gt=0.0, lt=1.0)


@REMEDIES.register("freezing", Freezing, traits=["holds_codes"])
class IterativeFreezing(Holding):
    """Permanently fixes the code of a weight that oscillates too often, to the rounded moving average of its codes.

    A weight whose frequency exceeds the current limit is moved to the centre of the bin of its average code and held
    from then on. The average lags behind a weight that drifts while it oscillates, as 8-bit weights do, so the nearer
    of the two codes that the weight last flipped between is used. The model and its checkpoints record which weights
    are frozen, so that a later phase with freezing keeps holding them.

    A frozen weight has a constant code, while its grid step is still trained:

    * it contributes its code to the gradient of a learned grid step (LSQ), which is the derivative of ``step * code``
      as in the paper; a weight that is not frozen contributes the distance from its position to its code;
    * after each optimizer step, its latent weight is set to the centre of its bin on the current grid.

    If the grid step is computed from the weights (StatsQ), frozen ones included, moving them along with the grid step
    would change it again, even if nothing is trained. A latent weight therefore keeps its value until its code would
    change, and only then is moved to the centre of its bin. In the rare case that this does not converge, all weights
    that share the grid step are restored.

    If freezing a weight would change another frozen code of its group, it is frozen in a later optimizer step instead.

    Args:
        model: The quantized and calibrated model, on its device; see :class:`~ofqctl.remedies.holding.Holding`.
        settings: Limits of the frequency and their schedule.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Freezing, steps: int) -> None:
        sites = dict(weight_sites(model))
        super().__init__(sites.values())
        self._limit = settings.over(steps)
        self._momentum = settings.momentum
        self._step = 0
        with torch.no_grad():
            self._followed = {site: _FreezableWeight(name, site) for name, site in sites.items()}
        for site in self.sites:
            assert site.weight_quantizer is not None
            self._hooks.append(site.weight_quantizer.register_forward_hook(self._freezer(site), prepend=True))

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The frozen weights."""
        assert site.weight_quantizer is not None and site.weight_quantizer.frozen is not None
        return site.weight_quantizer.frozen

    def settle(self, start: StepStart) -> None:
        """Restore the codes of frozen weights, and count flips."""
        followed = self._followed[start.site]
        encoded = _with_codes_of(start) if followed.any_frozen else encode(start.site, start.site.latent())
        followed.update(encoded, self._momentum)

    def after_step(self) -> None:
        """Restore the codes of frozen weights, count flips, and freeze weights that oscillate too often."""
        super().after_step()
        limit = self._limit.at(self._step)
        self._step += 1
        if limit is not None:
            with torch.no_grad():
                for followed in self._followed.values():
                    followed.freeze(limit)

    def state_dict(self) -> dict[str, Tensor]:
        """``step``, the number of optimizer steps done, and for each weight ``NAME`` four tensors.

        ``NAME.codes``, ``NAME.direction``, ``NAME.frequency`` and ``NAME.average``.
        """
        state = {"step": torch.tensor(self._step)}
        for followed in self._followed.values():
            state |= {f"{followed.name}.{key}": tensor.clone() for key, tensor in followed.tensors().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        self._step = int(state["step"])
        for followed in self._followed.values():
            for key, tensor in followed.tensors().items():
                tensor.copy_(state[f"{followed.name}.{key}"])

    def _freezer(self, site: WeightSite) -> Any:
        """A forward hook of a weight quantizer: gradients of frozen entries reach only the grid step."""

        def freeze(_quantizer: Any, inputs: tuple[Tensor], value: Tensor) -> Tensor | None:
            if not (value.requires_grad and self._followed[site].any_frozen):
                return None
            start = self.look(site, inputs[0].detach())
            return torch.where(start.held, _value_of_codes(start).to(value.dtype), value)

        return freeze


def _value_of_codes(start: StepStart) -> Tensor:
    """Decode constant codes; differentiable only with respect to a learned grid step, scaled as in LSQ."""
    encoded, step = start.encoded, learned_step(start.site)
    if step is not None:
        scale = step_gradient_scale(encoded.grid.range.high, start.latent.numel() / step.numel())
        encoded = replace(encoded, step=encoded.step + (step - step.detach()) * scale)
    return encoded.decode()


def _with_codes_of(start: StepStart) -> Encoded:
    """Restore the codes of held entries on the current grid; return the codes of all entries."""
    site, held, codes = start.site, start.held, start.encoded.codes
    if hasattr(site.weight_quantizer, "step"):  # not computed from the weights
        now = encode(site, site.latent())
        now = replace(now, codes=torch.where(held, codes, now.codes))
        site.hold(held, now.decode())
        return now
    site.hold(held, start.latent)
    now, changed = _recentred(start)
    if bool(changed.any()):
        site.hold(groups_of(changed, now.step), start.latent)
        now, _ = _recentred(start)  # a merged product is restored only up to float32 rounding
    return now


def _recentred(start: StepStart) -> tuple[Encoded, Tensor]:
    """Move held entries whose code changed to the centres of their bins, repeatedly as the grid step changes with them.

    Returns:
        The codes of all entries, and where held codes still differ from the original ones.
    """
    site, codes = start.site, start.encoded.codes
    for _ in range(_ROUNDS):
        now = encode(site, site.latent())
        changed = (now.codes != codes) & start.held
        if not bool(changed.any()):
            break
        site.hold(changed, replace(now, codes=codes).decode())
    return now, changed


class _FreezableWeight:
    """One weight tensor: its flips, and the moving average of its codes.

    Attributes:
        name: Name of the weight.
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
        """Its tensors by their names in the state."""
        flips = self.flips
        named = {"codes": flips.codes, "direction": flips.direction, "frequency": flips.frequency}
        return named | {"average": self.average}

    def update(self, encoded: Encoded, momentum: float) -> None:
        """Update with the codes after an optimizer step."""
        self.flips.update(encoded, momentum)
        self.average.lerp_(encoded.codes.float(), momentum)

    def freeze(self, limit: float) -> None:
        """Freeze the weights whose frequency is above ``limit``."""
        site, frozen = self._site, self._quantizer.frozen
        assert frozen is not None
        new = (self.flips.frequency > limit) & ~frozen
        if not bool(new.any()):
            return
        original = site.latent().clone()
        encoded = encode(site, original)
        wanted = torch.where(new, self._settled(encoded.codes.float()), encoded.codes).to(encoded.codes.dtype)
        site.hold(new, replace(encoded, codes=wanted).decode())
        changed = (encode(site, site.latent()).codes != wanted) & (frozen | new)
        undone = groups_of(changed, encoded.step)
        site.hold(undone, original)
        self._quantizer.frozen = frozen | (new & ~undone)
        self.any_frozen = bool(self._quantizer.frozen.any())

    def _settled(self, codes: Tensor) -> Tensor:
        """The rounded average code of each weight, limited to the two codes that it last flipped between."""
        other = codes - self.flips.direction
        return self.average.round().clamp(torch.minimum(codes, other), torch.maximum(codes, other))
