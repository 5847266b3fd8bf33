"""Which weights oscillate: their codes after each optimizer step, and how often a code flips back."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError, ModelError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.trajectory import Sampler, Trajectory

RECENT = 30  # steps over which the flips per step are taken


class OscillationTracker:
    """Follows the code of every quantized weight, those of merged query-key products included.

    A *flip* is a code that an optimizer step changed; an *oscillation* is a flip opposite in direction to the last flip
    of the same weight. Its frequency is the moving average ``f <- m * o + (1 - m) * f`` with ``o`` 1 at an oscillation
    and 0 otherwise (Nagel et al., ICML 2022, arXiv 2203.11086, Eq. 4).

    Only :meth:`update` counts; forward passes, of evaluation or training, change nothing. The state follows from the
    weights alone. Processes of distributed training hold the same weights after every step, so their trackers are
    equal and there is nothing to reduce: save the state of any one. (The recorded gradients of merged products are
    the exception; they are those of the process's own images.)

    It takes 6 bytes a weight (code, direction of its last flip, frequency), and for each weight tensor 16 kB
    for each recorded entry.

    Args:
        model: Quantized and calibrated, on its device; its weights as they are now are what the first step is
            compared with.
        momentum: ``m``, the weight of the newest step, 0 to 1.
        samples: Entries of each weight tensor whose trajectory is recorded.

    Raises:
        ModelError: The model has fixed codes in place of latent weights.
    """

    def __init__(self, model: nn.Module, momentum: float = 0.01, samples: int = 4) -> None:
        self.momentum = momentum
        self.steps = 0
        self._followed = {name: _Followed(name, site, samples) for name, site in weight_sites(model)}

    def update(self) -> None:
        """Take note of an optimizer step that has just been made; gradients may still be there, and are recorded."""
        self.steps += 1
        with torch.no_grad():
            for followed in self._followed.values():
                followed.update(self.momentum, self.steps)

    def frequencies(self, name: str) -> Tensor:
        """How often each entry of the weight ``name`` oscillates, per step; float32, of the weight's shape, live."""
        return self._followed[name].frequency

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
        ``NAME.flips`` and ``NAME.recent_flips`` (of the last 30 steps, oldest first); ``NAME.entries`` (which are
        recorded, in the flattened weight) and ``NAME.trajectory``, (steps, entries, 4): latent, step, code, gradient.
        """
        state = {"steps": torch.tensor(self.steps)}
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
        for name, followed in self._followed.items():
            followed.restore({key: state[f"{name}.{key}"] for key in _KEYS}, self.steps)

    def close(self) -> None:
        """Let go of the model."""
        for followed in self._followed.values():
            followed.sampler.close()

    def _check(self, state: Mapping[str, Tensor]) -> None:
        wanted = {"steps"} | {f"{name}.{key}" for name in self._followed for key in _KEYS}
        faults = [f"{key}: missing" for key in sorted(wanted - state.keys())]
        faults += [f"{key}: unknown" for key in sorted(state.keys() - wanted)]
        for name, followed in self._followed.items():
            shape = state[f"{name}.codes"].shape if f"{name}.codes" in state else followed.codes.shape
            if shape != followed.codes.shape:
                faults.append(f"{name}: {tuple(shape)}, expected {tuple(followed.codes.shape)}")
        if faults:
            raise ArtifactError("\n  ".join(["oscillation: the tracker's state is of another model:", *faults[:8]]))


_KEYS = ("codes", "direction", "frequency", "flips", "recent_flips", "entries", "trajectory")


class _Followed:
    """One weight.

    Attributes:
        codes: int8, of the weight's shape; codes that do not fit are moved down by 128.
        direction: Of the last flip: 1, -1, or 0 before the first; int8.
        frequency: float32.
        flips: Since the start.
        recent: Flips of each of the last 30 steps.
        sampler: Trajectories of some entries.
    """

    def __init__(self, name: str, site: WeightSite, samples: int) -> None:
        if site.fixed_codes is not None:
            raise ModelError(f"{name}: its codes are fixed, there is no latent weight that could be trained")
        self._site = site
        with torch.no_grad():
            latent, encoded = self._encode()
        self.codes = _as_int8(encoded)
        self.direction = torch.zeros_like(self.codes)
        self.frequency = torch.zeros_like(self.codes, dtype=torch.float32)
        self.flips = 0
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.sampler = Sampler(name, site, latent, samples)

    def update(self, momentum: float, step: int) -> None:
        """Compare with the codes of the step before; what flips is little, and only there is more to do."""
        latent, encoded = self._encode()
        codes = _as_int8(encoded)
        flipped = (codes != self.codes).view(-1).nonzero().squeeze(1)
        self.frequency.mul_(1.0 - momentum)
        if len(flipped):
            up = codes.view(-1)[flipped] > self.codes.view(-1)[flipped]
            direction = up.to(torch.int8).mul_(2).sub_(1)
            last = self.direction.view(-1)
            oscillates = last[flipped] == -direction
            self.frequency.view(-1).index_add_(0, flipped, oscillates.float(), alpha=momentum)
            last[flipped] = direction
        self.codes = codes
        self.flips += len(flipped)
        self.recent.append(len(flipped))
        self.sampler.record(latent, encoded, step)

    def state(self, steps: int) -> dict[str, Tensor]:
        """By the names in ``_KEYS``."""
        values = (
            self.codes.clone(),
            self.direction.clone(),
            self.frequency.clone(),
            torch.tensor(self.flips),
            torch.tensor(list(self.recent), dtype=torch.int64),
            self.sampler.entries.clone(),
            self.sampler.rows(steps),
        )
        return dict(zip(_KEYS, values, strict=True))

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Take over what :meth:`state` gave."""
        for own, key in ((self.codes, "codes"), (self.direction, "direction"), (self.frequency, "frequency")):
            own.copy_(state[key])
        self.flips = int(state["flips"])
        self.recent = deque(state["recent_flips"].tolist(), maxlen=RECENT)
        self.sampler.restore(state["entries"], state["trajectory"], steps)

    def _encode(self) -> tuple[Tensor, Encoded]:
        """The latent weight, and its codes."""
        latent, quantizer = self._site.latent(), self._site.weight_quantizer
        assert quantizer is not None
        return latent, quantizer.encode(latent)


def _as_int8(encoded: Encoded) -> Tensor:
    """The codes in one byte, contiguous."""
    codes = encoded.codes
    if encoded.grid.high > torch.iinfo(torch.int8).max:
        codes = codes.sub(128)
    return codes.to(torch.int8, memory_format=torch.contiguous_format)


def _figures(followed: list[_Followed], threshold: float) -> dict[str, float]:
    """The figures of :meth:`OscillationTracker.summary` of some weights together."""
    weights = sum(one.codes.numel() for one in followed)
    oscillating = sum(int((one.frequency > threshold).count_nonzero()) for one in followed)
    recent = sum(sum(one.recent) for one in followed)
    seen = sum(one.codes.numel() * len(one.recent) for one in followed)
    return {
        "weights": weights,
        "oscillating": oscillating / max(1, weights),
        "flips_per_step": recent / max(1, seen),
        "flips": sum(one.flips for one in followed),
    }
