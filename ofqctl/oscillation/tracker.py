"""Which weights oscillate: their codes after each optimizer step, and how often a code flips back."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError, ModelError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.flips import Flips, count_parts
from ofqctl.oscillation.history import History
from ofqctl.oscillation.roles import in_parts, roles_of
from ofqctl.oscillation.trajectory import Sampler, Trajectory

TRACKER_FILE = "oscillation.safetensors"  # of a run directory: the state
RECENT = 30  # steps over which the flips per step are taken


class OscillationTracker:
    """Follows the code of every quantized weight, those of merged query-key products included.

    What a flip, an oscillation and its frequency are is said at :class:`~ofqctl.oscillation.flips.Flips`.

    Only :meth:`update` counts; forward passes, of evaluation or training, change nothing. The state follows from the
    weights alone. Processes of distributed training hold the same weights after every step, so their trackers are
    equal and there is nothing to reduce: save the state of any one. (The recorded gradients of merged products are
    the exception; they are those of the process's own images.)

    It takes 6 bytes a weight (code, direction of its last flip, frequency), and for each weight tensor 16 kB
    for each recorded entry and at most 6 kB for each of its parts in the history.

    Args:
        model: Quantized and calibrated, on its device; its weights as they are now are what the first step is
            compared with.
        momentum: ``m``, the weight of the newest step, 0 to 1.
        samples: Entries of each weight tensor whose trajectory is recorded.
        threshold: For the history: a weight oscillates if its frequency is above this.

    Raises:
        ModelError: The model has fixed codes in place of latent weights.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.01, samples: int = 4, threshold: float = 0.005) -> None:
        self.momentum, self.threshold = momentum, threshold
        self.steps = 0
        self.history = History()
        self._followed = {name: _Followed(name, site, samples) for name, site in weight_sites(model)}

    def update(self) -> None:
        """Take note of an optimizer step that has just been made; gradients may still be there, and are recorded."""
        self.steps += 1
        with torch.no_grad():
            for followed in self._followed.values():
                followed.update(self.momentum, self.steps)
            if self.history.due(self.steps):
                parts = (self._followed[name].figures(self.threshold) for name in sorted(self._followed))
                self.history.add(self.steps, torch.cat(list(parts)))

    def frequencies(self, name: str) -> Tensor:
        """How often each entry of the weight ``name`` oscillates, per step; float32, of the weight's shape, live."""
        return self._followed[name].now.frequency

    def trajectory(self, name: str) -> Trajectory:
        """What the recorded entries of the weight ``name`` did in the latest steps."""
        return self._followed[name].sampler.trajectory(self.steps)

    def summary(self, threshold: float) -> dict[str, Any]:
        """How much oscillates.

        Args:
            threshold: A weight oscillates if its frequency is above this.

        Returns:
            ``steps`` and ``threshold``; ``total`` and, under its name in ``sites``, each weight with ``weights`` (how
            many), ``oscillating`` (share of them), ``flips_per_step`` (share of the codes that flip in a step, mean of
            the last 30 steps) and ``flips`` (since the start).
        """
        sites = {name: _figures([followed], threshold) for name, followed in self._followed.items()}
        total = _figures(list(self._followed.values()), threshold)
        return {"steps": self.steps, "threshold": threshold, "total": total, "sites": sites}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all there is to know: ``steps``, and of each weight ``NAME`` these.

        ``NAME.codes``, ``NAME.direction`` (of the last flip: 1 up, -1 down, 0 if there was none), ``NAME.frequency``;
        ``NAME.flips``, (parts,), and ``NAME.recent_flips``, (steps, parts), of the last 30 steps, oldest first, for
        each of the equal parts of a fused projection; ``NAME.entries`` (which are recorded, in the flattened weight)
        and ``NAME.trajectory``, (steps, entries, 4): latent, step, code, gradient.

        ``history_steps``, (rows,), and ``history``, (rows, parts, 3), see :class:`~ofqctl.oscillation.history.History`:
        the parts of all weights in the alphabetical order of their names.
        """
        state = {"steps": torch.tensor(self.steps)} | self.history.state()
        for name, followed in self._followed.items():
            state |= {f"{name}.{key}": tensor for key, tensor in followed.state(self.steps).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly as the tracker would have that gave ``state``.

        Raises:
            ArtifactError: The state is of a model with other weights.
        """
        self._check(state)
        self.steps = int(state["steps"])
        self.history.restore(state)
        for name, followed in self._followed.items():
            followed.restore({key: state[f"{name}.{key}"] for key in _KEYS}, self.steps)

    def close(self) -> None:
        """Let go of the model."""
        for followed in self._followed.values():
            followed.sampler.close()

    def _check(self, state: Mapping[str, Tensor]) -> None:
        wanted = {"steps"} | {f"{name}.{key}" for name in self._followed for key in _KEYS}
        faults = [f"{key}: missing" for key in sorted(wanted - state.keys())]
        faults += [f"{key}: unknown" for key in sorted(state.keys() - wanted - {"history", "history_steps"})]
        for name, followed in self._followed.items():
            own = followed.now.codes.shape
            shape = state[f"{name}.codes"].shape if f"{name}.codes" in state else own
            if shape != own:
                faults.append(f"{name}: {tuple(shape)}, expected {tuple(own)}")
        if faults:
            raise ArtifactError("\n  ".join(["oscillation: the tracker's state is of another model:", *faults[:8]]))


_KEYS = ("codes", "direction", "frequency", "flips", "recent_flips", "entries", "trajectory")


class _Followed:
    """One weight.

    Attributes:
        now: Its codes, directions and frequencies.
        flips: Of each of its parts since the start, int64, (parts,).
        recent: The same of each of the last 30 steps.
        sampler: Trajectories of some entries.
    """

    def __init__(self, name: str, site: WeightSite, samples: int) -> None:
        if site.fixed_codes is not None:
            raise ModelError(f"{name}: its codes are fixed, there is no latent weight that could be trained")
        self._site = site
        with torch.no_grad():
            latent, encoded = self._encode()
        self.now, self._step = Flips(encoded), encoded.step
        parts = len(roles_of(name.removesuffix(".weight"), latent.shape[0]))
        self.flips = torch.zeros(parts, dtype=torch.int64)
        self.recent: deque[Tensor] = deque(maxlen=RECENT)
        self.sampler = Sampler(name, site, latent, samples)

    def update(self, momentum: float, step: int) -> None:
        """Compare with the codes of the step before."""
        latent, encoded = self._encode()
        self._step = encoded.step
        flipped, _ = self.now.update(encoded, momentum)
        counts = count_parts(flipped, latent.numel(), len(self.flips))
        self.flips = self.flips + counts
        self.recent.append(counts)
        self.sampler.record(latent, encoded, step)

    def figures(self, threshold: float) -> Tensor:
        """The row of the history, (parts, 3), float64."""
        parts = len(self.flips)
        steps = [float(part.mean()) for part in in_parts(self._step, parts)]
        frequencies = in_parts(self.now.frequency, parts)
        oscillating = [int((part > threshold).count_nonzero()) / part.numel() for part in frequencies]
        figures = zip(steps, oscillating, self.flips.tolist(), strict=True)
        return torch.tensor(list(figures), dtype=torch.float64)

    def state(self, steps: int) -> dict[str, Tensor]:
        """By the names in ``_KEYS``."""
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
        return dict(zip(_KEYS, values, strict=True))

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take over what :meth:`state` gave; flips that it counts for the whole weight go on being counted so."""
        now = self.now
        for own, key in ((now.codes, "codes"), (now.direction, "direction"), (now.frequency, "frequency")):
            own.copy_(state[key])
        self.flips = state["flips"].reshape(-1).clone()
        self.recent = deque(state["recent_flips"].view(-1, len(self.flips)).unbind(), maxlen=RECENT)
        self.sampler.restore(state["entries"], state["trajectory"], steps)

    def _encode(self) -> tuple[Tensor, Encoded]:
        """The latent weight, and its codes."""
        latent, quantizer = self._site.latent(), self._site.weight_quantizer
        assert quantizer is not None
        return latent, quantizer.encode(latent)


def _figures(followed: list[_Followed], threshold: float) -> dict[str, float]:
    """The figures of :meth:`OscillationTracker.summary` of some weights together."""
    weights = sum(one.now.codes.numel() for one in followed)
    oscillating = sum(int((one.now.frequency > threshold).count_nonzero()) for one in followed)
    recent = sum(int(counts.sum()) for one in followed for counts in one.recent)
    seen = sum(one.now.codes.numel() * len(one.recent) for one in followed)
    return {
        "weights": weights,
        "oscillating": oscillating / max(1, weights),
        "flips_per_step": recent / max(1, seen),
        "flips": sum(int(one.flips.sum()) for one in followed),
    }
