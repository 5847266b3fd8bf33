"""What a few weights did, step by step, for plots."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.gradients import GradientWatch

WINDOW = 1000  # steps that are kept
_FIGURES = 4  # latent, step, code, gradient


@dataclass(frozen=True)
class Trajectory:
    """The latest steps of some entries of one weight; every tensor but the first is (steps, entries), float32.

    Attributes:
        entries: Where they lie in the flattened weight, (entries,).
        latent: Their float values.
        step: Distance between neighbouring grid points of each.
        code: Their codes.
        gradient: Of the loss with respect to the latent value; NaN where there was none.
    """

    entries: Tensor
    latent: Tensor
    step: Tensor
    code: Tensor
    gradient: Tensor


class Sampler:
    """Records some entries of one weight after every optimizer step, the latest 1000 steps.

    Args:
        name: Of the weight; decides which entries are recorded.
        site: The weight.
        latent: Its float values.
        samples: How many entries; all of a weight that has fewer.
    """

    entries: Tensor
    _index: tuple[Tensor, ...]
    _ring: Tensor  # (WINDOW, entries, _FIGURES); that of step n lies at (n - 1) % WINDOW

    def __init__(self, name: str, site: WeightSite, latent: Tensor, samples: int) -> None:
        count = latent.numel()
        chosen = sorted(random.Random(name).sample(range(count), min(samples, count)))
        self._shape = latent.shape
        self._gradients = GradientWatch(site, latent)
        self._start(torch.tensor(chosen, dtype=torch.int64, device=latent.device))

    def record(self, latent: Tensor, encoded: Encoded, step: int) -> None:
        """Take down the entries.

        Args:
            latent: The weight, its gradient still there if it is a parameter.
            encoded: Its codes and steps.
            step: Number of the optimizer step, counted from 1.
        """
        gradient = self._gradients.take(latent)
        if gradient is None:
            gradient = latent.new_full(self.entries.shape, torch.nan)
        steps = encoded.step.expand(self._shape)[self._index]
        figures = latent.detach()[self._index], steps.detach(), encoded.codes[self._index], gradient
        torch.stack([figure.float() for figure in figures], dim=-1, out=self._ring[(step - 1) % WINDOW])

    def rows(self, step: int) -> Tensor:
        """A copy of what was recorded up to ``step``, oldest first: (steps, entries, 4)."""
        return self._ring[:step].clone() if step <= WINDOW else self._ring.roll(-step, dims=0)

    def restore(self, entries: Tensor, rows: Tensor, step: int) -> None:
        """Go on from the ``entries`` and ``rows`` of another sampler at ``step``."""
        self._start(entries.to(self.entries.device, copy=True))
        self._ring[: len(rows)] = rows
        if step > WINDOW:
            self._ring = self._ring.roll(step, dims=0)

    def trajectory(self, step: int) -> Trajectory:
        """What was recorded up to ``step``."""
        return Trajectory(self.entries, *self.rows(step).unbind(dim=-1))

    def close(self) -> None:
        """Let go of the weight."""
        self._gradients.close()

    def _start(self, entries: Tensor) -> None:
        self.entries = entries
        self._index = self._gradients.index = torch.unravel_index(entries, self._shape)
        self._ring = torch.zeros(WINDOW, len(entries), _FIGURES, device=entries.device)
