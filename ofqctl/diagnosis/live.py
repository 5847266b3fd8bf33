"""Measure how single optimizer steps change the codes of weights and, on one fixed batch, of activations."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ofqctl.convert import operands
from ofqctl.hooks import attached, in_evaluation_mode
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation import Flips, GradientWatch, Role, count_parts, roles_of
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan
from ofqctl.results.analyze_oscillation import LiveActivation, LiveLayer, LiveStep
from ofqctl.results.layers import LiveWeights


class LiveMeter:
    """Observes a model after every optimizer step, without changing it.

    Args:
        model: The quantized model with latent weights, before the first step.
        plan: The plan that the model was quantized by.
        probe: Images of the fixed batch, (images, 3, H, W), or None to skip activations.
        momentum: Momentum of the frequency.
        threshold: Frequency above which a weight oscillates.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, probe: Tensor | None, *, momentum: float, threshold: float
    ) -> None:
        self._model, self._probe = model, probe
        self._momentum, self._threshold = momentum, threshold
        self._weights = [_LiveWeight(name.removesuffix(".weight"), site) for name, site in weight_sites(model)]
        modules = [(name, operands(model.get_submodule(name))) for name in plan.modules]
        self._activations = [_LiveOperand(name, key, q) for name, found in modules for key, q in found.items()]
        self.steps: list[LiveStep] = []
        self._look()
        for activation in self._activations:
            activation.compare()

    def update(self, loss: float) -> None:
        """Count an optimizer step that was just made; its gradients must still be in place."""
        tallies = [tally for weight in self._weights for tally in weight.update(self._momentum)]
        self._look()
        shares = [activation.compare() for activation in self._activations]
        codes = sum(count for _, count in shares)
        self.steps.append(
            LiveStep(
                loss=loss,
                flips=sum(int(tally[0]) for tally in tallies) / sum(weight.count for weight in self._weights),
                sign_agreement=_ratio(sum(int(t[2]) for t in tallies), sum(int(t[3]) for t in tallies)),
                activations_changed=_ratio(sum(changed for changed, _ in shares), codes),
            )
        )

    @property
    def layers(self) -> tuple[LiveLayer, ...]:
        """Figures of every weight over all steps so far."""
        steps = len(self.steps)
        return tuple(layer for weight in self._weights for layer in weight.layers(steps, self._threshold))

    @property
    def total(self) -> LiveWeights:
        """Figures of all weights together."""
        tallies = torch.stack([weight.tally.sum(0) for weight in self._weights]).sum(0)
        weights = sum(weight.count for weight in self._weights)
        oscillating = sum(int((w.flips.frequency > self._threshold).count_nonzero()) for w in self._weights)
        return _figures(tallies, weights, oscillating, len(self.steps))

    @property
    def activations(self) -> tuple[LiveActivation, ...]:
        """Figures of every activation quantizer that the probe batch reached."""
        return tuple(activation.figures() for activation in self._activations if activation.compared)

    @property
    def activations_changed(self) -> float | None:
        """Figures of all activations together."""
        return _ratio(sum(a.changed for a in self._activations), sum(a.compared for a in self._activations))

    def close(self) -> None:
        """Remove hooks from the model."""
        for weight in self._weights:
            weight.gradients.close()

    def _look(self) -> None:
        """Run the model on the probe batch and keep the codes of its activations."""
        if self._probe is None:
            return
        listening = attached(activation.listen() for activation in self._activations)
        with in_evaluation_mode(self._model), listening, torch.no_grad():
            self._model(self._probe)


class _LiveWeight:
    """One weight tensor.

    Attributes:
        count: Number of its entries.
        flips: Its codes, directions and frequencies since the first step.
        tally: Counts for each of its parts, (parts, 4), int64: flips, oscillations, pairs of gradients with the same
            sign, pairs of gradients.
        gradients: Collects its gradients.
    """

    def __init__(self, name: str, site: WeightSite) -> None:
        self._name, self._site = name, site
        with torch.no_grad():
            latent = site.latent()
        encoded = site.encode_weight()
        assert encoded is not None
        self.count = latent.numel()
        self.flips = Flips(encoded)
        self._roles: tuple[Role, ...] = roles_of(name, latent.shape[0])
        self.tally = torch.zeros(len(self._roles), 4, dtype=torch.int64)
        self.gradients = GradientWatch(site, latent)
        self._sign: Tensor | None = None

    def update(self, momentum: float) -> Tensor:
        """Add the counts of one step, (parts, 4), to the tally, and return them."""
        with torch.no_grad():
            latent = self._site.latent()
            encoded = self._site.encode_weight()
        assert encoded is not None
        flipped, oscillates = self.flips.update(encoded, momentum)
        gradient = self.gradients.take(latent)
        sign = None if gradient is None else gradient.sign().to(torch.int8).flatten()
        parts = len(self._roles)
        step = torch.zeros_like(self.tally)
        step[:, 0] = count_parts(flipped, self.count, parts)
        step[:, 1] = count_parts(flipped[oscillates], self.count, parts)
        if sign is not None and self._sign is not None:
            product = (sign * self._sign).view(parts, -1)
            step[:, 2] = product.gt(0).count_nonzero(1).cpu()
            step[:, 3] = product.count_nonzero(1).cpu()
        self._sign = sign
        self.tally += step
        return step

    def layers(self, steps: int, threshold: float) -> Iterator[LiveLayer]:
        """Figures of each of its parts."""
        parts = len(self._roles)
        weights = self.count // parts
        oscillating = (self.flips.frequency > threshold).view(parts, -1).count_nonzero(1)
        for role, tally, many in zip(self._roles, self.tally, oscillating.tolist(), strict=True):
            figures = _figures(tally, weights, many, steps)
            yield LiveLayer(name=self._name, role=role, weights=weights, **figures.model_dump())


class _LiveOperand:
    """One activation quantizer.

    Attributes:
        changed: Number of codes that differed from the previous step, summed over all steps.
        compared: Number of codes compared, summed over all steps.
    """

    def __init__(self, name: str, operand: str, quantizer: Quantizer) -> None:
        self._name, self._operand, self._quantizer = name, operand, quantizer
        self._now: list[Tensor] = []  # one for each call of the quantizer
        self._last: list[Tensor] | None = None
        self.changed = self.compared = 0

    def listen(self) -> RemovableHandle:
        """Keep the codes of the quantizer's inputs as long as the returned hook exists."""

        def keep(quantizer: Any, inputs: tuple[Tensor]) -> None:
            self._now.append(quantizer.encode(inputs[0]).codes)

        return self._quantizer.register_forward_pre_hook(keep)

    def compare(self) -> tuple[int, int]:
        """Number of codes that differ from those of the previous call, and number of codes."""
        now, last, self._now = self._now, self._last, []
        self._last = now
        if last is None:
            return 0, 0
        changed = sum(int((one != other).count_nonzero()) for one, other in zip(now, last, strict=True))
        compared = sum(codes.numel() for codes in now)
        self.changed += changed
        self.compared += compared
        return changed, compared

    def figures(self) -> LiveActivation:
        """Figures over all steps."""
        share = self.changed / max(1, self.compared)
        return LiveActivation(name=self._name, operand=self._operand, bits=self._quantizer.range.bits, changed=share)


def _figures(tally: Tensor, weights: int, oscillating: int, steps: int) -> LiveWeights:
    flips, oscillations, same, pairs = tally.tolist()
    seen = max(1, weights * steps)
    return LiveWeights(
        flips_per_step=flips / seen,
        oscillations_per_step=oscillations / seen,
        oscillating=oscillating / weights,
        sign_agreement=_ratio(same, pairs),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
