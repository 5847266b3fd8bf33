"""Iterative weight freezing (Nagel et al., ICML 2022, arXiv 2203.11086, Algorithm 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.flips import Flips
from ofqctl.oscillation.holding import Holding, encode, groups_of
from ofqctl.oscillation.schedule import Schedule
from ofqctl.recipe.training import Freezing as Settings


class IterativeFreezing(Holding):
    """Fixes the code of a weight that oscillates too often, for good, to the rounded moving average of its codes.

    A weight whose frequency exceeds the limit of the step is put into the middle of the bin of that average and held
    from then on. The average lags behind a weight that drifts while it oscillates, as those of 8 bits do; so of the
    two codes that the weight last flipped between the nearer one is taken. Which weights are frozen is part of the
    model and of its checkpoints, so that a later phase with freezing goes on holding them. The steps of the grid go on
    learning.

    A weight is frozen a step later if freezing it would change another frozen code of its group.

    Args:
        model: As for :class:`~ofqctl.oscillation.holding.Holding`.
        settings: Limits and schedule.
        steps: Optimizer steps of the phase.
    """

    def __init__(self, model: nn.Module, settings: Settings, steps: int) -> None:
        super().__init__(model)
        self._limit = Schedule(settings.start, settings.end, settings.delay, steps)
        self._momentum = settings.momentum
        self._step = 0
        with torch.no_grad():
            self._followed = {name: _Followed(site) for name, site in weight_sites(model)}

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The frozen ones."""
        assert site.weight_quantizer is not None and site.weight_quantizer.frozen is not None
        return site.weight_quantizer.frozen

    def after_step(self) -> None:
        """Put the frozen weights back, count flips, and freeze what oscillates too often."""
        super().after_step()
        limit = self._limit.at(self._step)
        self._step += 1
        with torch.no_grad():
            for followed in self._followed.values():
                followed.update(self._momentum)
                if limit is not None:
                    followed.freeze(limit)

    def state_dict(self) -> dict[str, Tensor]:
        """``step``, and of each weight ``NAME.codes``, ``.direction``, ``.frequency`` and ``.average``."""
        state = {"step": torch.tensor(self._step)}
        for name, followed in self._followed.items():
            state |= {f"{name}.{key}": tensor.clone() for key, tensor in followed.tensors().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._step = int(state["step"])
        for name, followed in self._followed.items():
            for key, tensor in followed.tensors().items():
                tensor.copy_(state[f"{name}.{key}"])


class _Followed:
    """One weight: its flips, and the moving average of its codes."""

    def __init__(self, site: WeightSite) -> None:
        quantizer, latent = site.weight_quantizer, site.latent()
        assert quantizer is not None
        if quantizer.frozen is None:
            quantizer.frozen = torch.zeros_like(latent, dtype=torch.bool)
        quantizer.frozen = quantizer.frozen.to(latent.device)
        self._site, self._quantizer = site, quantizer
        encoded = encode(site, latent)
        self.flips = Flips(encoded)
        self.average = encoded.codes.float()

    def tensors(self) -> dict[str, Tensor]:
        """By the names in the state."""
        flips = self.flips
        named = {"codes": flips.codes, "direction": flips.direction, "frequency": flips.frequency}
        return named | {"average": self.average}

    def update(self, momentum: float) -> None:
        """Take note of the codes after a step."""
        encoded = encode(self._site, self._site.latent())
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
        codes = encoded.codes.float()
        wanted = torch.where(new, self._settled(codes), codes)
        site.hold(new, encoded.grid.points(wanted) * encoded.step)
        changed = (encode(site, site.latent()).codes != wanted) & (frozen | new)
        undone = groups_of(changed, encoded.step)
        site.hold(undone, before)
        self._quantizer.frozen = frozen | (new & ~undone)

    def _settled(self, codes: Tensor) -> Tensor:
        """The rounded average of each weight, within the two codes that it last flipped between."""
        other = codes - self.flips.direction
        return self.average.round().clamp(torch.minimum(codes, other), torch.maximum(codes, other))
