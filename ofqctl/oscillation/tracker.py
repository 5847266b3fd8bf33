"""Find weights that oscillate, by comparing their codes after each optimizer step."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError, ModelError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.flips import MOVED, Flips, count_moved, count_parts
from ofqctl.oscillation.history import HistoryTable
from ofqctl.oscillation.roles import in_parts, roles_of
from ofqctl.oscillation.trajectory import Sampler, Trajectory

RECENT = 30  # number of optimizer steps that `flips_per_step` averages over


class OscillationTracker:
    """Follows the codes of all quantized weights, including those of merged query and key.

    Flips, oscillations and frequencies are defined in :class:`~ofqctl.oscillation.flips.Flips`.

    Only :meth:`update` changes the state; forward passes do not. The state depends only on the weights. All processes
    of distributed training have the same weights after every optimizer step, so their trackers are equal and nothing is
    reduced: save the state of any one. (The recorded gradients of merged products are an exception: they come from the
    images of the process itself.)

    It takes 7 bytes for each weight (code, code at the start, direction of the last flip, frequency); and for each
    weight tensor 20 kB for each recorded entry and at most 6 kB for each of its parts in the history.

    Args:
        model: The quantized and calibrated model, on its device; the first optimizer step is compared with its current
            weights.
        momentum: ``m``, the weight of the latest optimizer step in the average, 0 to 1.
        samples: Number of entries of each weight tensor whose trajectory is recorded.
        threshold: Frequency above which the history counts a weight as oscillating.

    Raises:
        ModelError: The model has fixed codes instead of latent weights.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.01, samples: int = 4, threshold: float = 0.005) -> None:
        self.momentum, self.threshold = momentum, threshold
        self.steps = 0
        self.history = HistoryTable()
        self._followed = {name: _TrackedWeight(name, site, samples) for name, site in weight_sites(model)}

    def update(self) -> None:
        """Count an optimizer step that was just made; gradients that are still in place are recorded."""
        self.steps += 1
        with torch.no_grad():
            for followed in self._followed.values():
                followed.update(self.momentum, self.steps)
            if self.history.due(self.steps):
                parts = (self._followed[name].figures(self.threshold) for name in sorted(self._followed))
                self.history.add(self.steps, torch.cat(list(parts)))

    def frequencies(self, name: str) -> Tensor:
        """Oscillation frequency of each entry of the weight ``name``, per optimizer step; float32, not a copy."""
        return self._followed[name].now.frequency

    def trajectory(self, name: str) -> Trajectory:
        """The latest optimizer steps of the recorded entries of the weight ``name``."""
        return self._followed[name].sampler.trajectory(self.steps)

    def summary(self, threshold: float) -> dict[str, Any]:
        """Summarize how many weights oscillate.

        Args:
            threshold: Frequency above which a weight oscillates.

        Returns:
            ``steps`` and ``threshold``; and in ``total``, and for each weight tensor by name in ``sites``: ``weights``
            (their number), ``oscillating`` (the share that oscillates), ``flips_per_step`` (the share of codes that
            flip in an optimizer step, mean of the last 30) and ``flips`` (number since the start); and ``moved``, the
            share of codes that are not those at the start, with ``signs_moved`` and ``magnitudes_moved``, of points
            whose sign or magnitude is not; they are missing if an earlier version began to follow.
        """
        sites = {name: _figures([followed], threshold) for name, followed in self._followed.items()}
        total = _figures(list(self._followed.values()), threshold)
        return {"steps": self.steps, "threshold": threshold, "total": total, "sites": sites}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the whole state: ``steps``, and for each weight ``NAME`` the following.

        ``NAME.codes``, ``NAME.start`` (codes at the start; missing if an earlier version began to follow),
        ``NAME.direction`` (of the last flip: 1 up, -1 down, 0 if there was none), ``NAME.frequency``;
        ``NAME.flips``, (parts,), and ``NAME.recent_flips``, (steps, parts), of the last 30 optimizer steps, oldest
        first, for each of the equal parts of a fused projection; ``NAME.entries`` (indices of the recorded entries in
        the flattened weight) and ``NAME.trajectory``, (steps, entries, 5): latent value, grid step, code, gradient,
        position.

        ``history_steps``, (rows,), and ``history``, (rows, parts, 3), with the parts of all weights in the alphabetical
        order of their names; see :class:`~ofqctl.oscillation.history.HistoryTable`.
        """
        state = {"steps": torch.tensor(self.steps)} | self.history.state()
        for name, followed in self._followed.items():
            state |= {f"{name}.{key}": tensor for key, tensor in followed.state(self.steps).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``state``, so that the tracker continues exactly as the one that returned it.

        Raises:
            ArtifactError: The state belongs to a model with other weights.
        """
        self._check(state)
        self.steps = int(state["steps"])
        self.history.restore(state)
        for name, followed in self._followed.items():
            own = {key: state[f"{name}.{key}"] for key in (*_KEYS, _START) if f"{name}.{key}" in state}
            followed.restore(own, self.steps)

    def close(self) -> None:
        """Remove hooks from the model."""
        for followed in self._followed.values():
            followed.sampler.close()

    def _check(self, state: Mapping[str, Tensor]) -> None:
        wanted = {"steps"} | {f"{name}.{key}" for name in self._followed for key in _KEYS}
        faults = [f"{key}: missing" for key in sorted(wanted - state.keys())]
        optional = {"history", "history_steps"} | {f"{name}.{_START}" for name in self._followed}
        faults += [f"{key}: unknown" for key in sorted(state.keys() - wanted - optional)]
        for name, followed in self._followed.items():
            own = followed.now.codes.shape
            shape = state[f"{name}.codes"].shape if f"{name}.codes" in state else own
            if shape != own:
                faults.append(f"{name}: {tuple(shape)}, expected {tuple(own)}")
        if faults:
            raise ArtifactError(
                "\n  ".join(["oscillation: the tracker's state belongs to another model:", *faults[:8]])
            )


_KEYS = ("codes", "direction", "frequency", "flips", "recent_flips", "entries", "trajectory")
_START = "start"


class _TrackedWeight:
    """One weight tensor.

    Attributes:
        now: Its current codes, directions and frequencies.
        start: Codes at the start, int8, or None if an earlier version began to follow.
        flips: Number of flips since the start in each of its parts, int64, (parts,).
        recent: Numbers of flips in each of the last 30 optimizer steps.
        sampler: Records the trajectories of some entries.
    """

    def __init__(self, name: str, site: WeightSite, samples: int) -> None:
        if site.fixed_codes is not None:
            raise ModelError(f"{name}: its codes are fixed, so there is no latent weight to train")
        self._site = site
        with torch.no_grad():
            latent, encoded = self._encode()
        self.now, self._encoded = Flips(encoded), encoded
        self.start: Tensor | None = self.now.codes.clone()
        parts = len(roles_of(name.removesuffix(".weight"), latent.shape[0]))
        self.flips = torch.zeros(parts, dtype=torch.int64)
        self.recent: deque[Tensor] = deque(maxlen=RECENT)
        self.sampler = Sampler(name, site, latent, samples)

    def update(self, momentum: float, step: int) -> None:
        """Compare the current codes with those after the previous optimizer step."""
        latent, encoded = self._encode()
        self._encoded = encoded
        flipped, _ = self.now.update(encoded, momentum)
        counts = count_parts(flipped, latent.numel(), len(self.flips))
        self.flips = self.flips + counts
        self.recent.append(counts)
        self.sampler.record(latent, encoded, step)

    def figures(self, threshold: float) -> Tensor:
        """Its part of a row of the history, (parts, 3), float64."""
        parts = len(self.flips)
        steps = [float(part.mean()) for part in in_parts(self._encoded.step, parts)]
        frequencies = in_parts(self.now.frequency, parts)
        oscillating = [int((part > threshold).count_nonzero()) / part.numel() for part in frequencies]
        figures = zip(steps, oscillating, self.flips.tolist(), strict=True)
        return torch.tensor(list(figures), dtype=torch.float64)

    def moved(self) -> Tensor | None:
        """How many codes, signs and magnitudes are not those at the start, (3,), if that is known."""
        return None if self.start is None else count_moved(self.start, self._encoded)

    def state(self, steps: int) -> dict[str, Tensor]:
        """Its state, under the names in ``_KEYS`` and ``_START``."""
        recent = torch.stack(list(self.recent)) if self.recent else self.flips.new_zeros(0, len(self.flips))
        values = (
            self.now.codes.clone(),
            self.now.direction.clone(),
            self.now.frequency.clone(),
            self.flips.clone(),
            recent,
            self.sampler.entries.clone(),
            self.sampler.rows(steps),
        )
        start = {} if self.start is None else {_START: self.start.clone()}
        return dict(zip(_KEYS, values, strict=True)) | start

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restore what :meth:`state` returned; flips that it counted for the whole weight are still counted so."""
        now = self.now
        for own, key in ((now.codes, "codes"), (now.direction, "direction"), (now.frequency, "frequency")):
            own.copy_(state[key])
        self.start = state[_START].to(now.codes.device, copy=True) if _START in state else None
        self.flips = state["flips"].reshape(-1).clone()
        self.recent = deque(state["recent_flips"].view(-1, len(self.flips)).unbind(), maxlen=RECENT)
        self.sampler.restore(state["entries"], state["trajectory"], steps)

    def _encode(self) -> tuple[Tensor, Encoded]:
        """Return the latent weight and its codes."""
        latent, quantizer = self._site.latent(), self._site.weight_quantizer
        assert quantizer is not None
        return latent, quantizer.encode(latent)


def _figures(followed: list[_TrackedWeight], threshold: float) -> dict[str, float]:
    """The figures of :meth:`OscillationTracker.summary` for several weight tensors together."""
    weights = sum(one.now.codes.numel() for one in followed)
    oscillating = sum(int((one.now.frequency > threshold).count_nonzero()) for one in followed)
    recent = sum(int(counts.sum()) for one in followed for counts in one.recent)
    seen = sum(one.now.codes.numel() * len(one.recent) for one in followed)
    moved = [counts for one in followed if (counts := one.moved()) is not None]
    shares = torch.stack(moved).sum(0) / max(1, weights) if len(moved) == len(followed) and moved else ()
    return {
        "weights": weights,
        "oscillating": oscillating / max(1, weights),
        "flips_per_step": recent / max(1, seen),
        "flips": sum(int(one.flips.sum()) for one in followed),
        **{name: float(share) for name, share in zip(MOVED, shares, strict=False)},
    }
