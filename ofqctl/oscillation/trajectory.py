"""Record a few weights at every optimizer step, for plots."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.gradients import GradientWatch

WINDOW = 1000  # number of optimizer steps that are kept
_FIGURES = 5  # latent value, grid step, code, gradient, position


@dataclass(frozen=True)
class Trajectory:
    """The latest optimizer steps of some entries of a weight; tensors are float32, (steps, entries).

    Attributes:
        entries: Indices of the entries in the flattened weight, (entries,).
        latent: Latent values.
        step: Grid step of each entry.
        code: Codes.
        gradient: Gradient of the loss with respect to the latent value; NaN if there was none.
        position: Continuous codes; NaN for steps that an earlier version recorded.
    """

    entries: Tensor
    latent: Tensor
    step: Tensor
    code: Tensor
    gradient: Tensor
    position: Tensor


class Sampler:
    """Records some entries of one weight after every optimizer step; keeps the latest 1000.

    Args:
        name: Name of the weight; decides which entries are recorded.
        site: The module that holds the weight.
        latent: Its latent values.
        samples: Number of entries to record; all if the weight has fewer.
    """

    entries: Tensor
    _index: tuple[Tensor, ...]
    _ring: Tensor  # (WINDOW, entries, _FIGURES); step n is at index (n - 1) % WINDOW

    def __init__(self, name: str, site: WeightSite, latent: Tensor, samples: int) -> None:
        count = latent.numel()
        chosen = sorted(random.Random(name).sample(range(count), min(samples, count)))
        self._shape = latent.shape
        self._gradients = GradientWatch(site, latent)
        self._start(torch.tensor(chosen, dtype=torch.int64, device=latent.device))

    def record(self, latent: Tensor, encoded: Encoded, step: int) -> None:
        """Record the entries.

        Args:
            latent: The latent weight; if it is a parameter, with its gradient still in place.
            encoded: Its codes, grid steps and grid.
            step: Number of the optimizer step, counted from 1.
        """
        gradient = self._gradients.take(latent)
        if gradient is None:
            gradient = latent.new_full(self.entries.shape, torch.nan)
        values, own = latent.detach()[self._index], encoded.map(lambda tensor: tensor.expand(self._shape)[self._index])
        figures = values, own.step.detach(), own.codes, gradient, own.position(values)
        torch.stack([figure.float() for figure in figures], dim=-1, out=self._ring[(step - 1) % WINDOW])

    def rows(self, step: int) -> Tensor:
        """A copy of the records up to ``step``, oldest first: (steps, entries, 5)."""
        return self._ring[:step].clone() if step <= WINDOW else self._ring.roll(-step, dims=0)

    def restore(self, entries: Tensor, rows: Tensor, step: int) -> None:
        """Restore the ``entries`` and ``rows`` that another sampler had at ``step``."""
        self._start(entries.to(self.entries.device, copy=True))
        self._ring[: len(rows), :, rows.shape[2] :] = torch.nan
        self._ring[: len(rows), :, : rows.shape[2]] = rows
        if step > WINDOW:
            self._ring = self._ring.roll(step, dims=0)

    def trajectory(self, step: int) -> Trajectory:
        """The records up to ``step``."""
        return Trajectory(self.entries, *self.rows(step).unbind(dim=-1))

    def close(self) -> None:
        """Remove the hooks."""
        self._gradients.close()

    def _start(self, entries: Tensor) -> None:
        self.entries = entries
        self._index = self._gradients.index = torch.unravel_index(entries, self._shape)
        self._ring = torch.zeros(WINDOW, len(entries), _FIGURES, device=entries.device)
