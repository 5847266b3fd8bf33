"""TRS: a schedule of how many codes change (Lee et al., ICCV 2025, arXiv 2404.19248).

A learning rate says how far latent weights move, not how many codes change, and late in a training many lie at a
threshold. Here the share of codes that change in an optimizer step is what falls along a cosine to 0, and each layer
finds the learning rate of its latent weights that gives it, so training settles down. Use it at 2 to 4 bits; other
parameters follow the learning rate of the phase. It costs about as much as quantizing the weights once more.

With ``k`` the share of a layer's codes that an optimizer step changed, ``K <- m * K + (1 - m) * k`` its average, and
the target ``R = rate * sqrt(bits)``, falling along a cosine to 0, the learning rate is

    U <- max(0, U + eta * (R - K))

The best published rates are 0.004 to 0.006 at 2 bits. Grid steps of these weights stay fixed, so that codes change by
the weights alone; where they are computed from the weights, as in StatsQ, such changes are counted too.

Our decisions, where the paper was not to be had: each layer has a ``U`` of its own, which starts at the peak learning
rate of the phase, ``K`` starts at the target, and ``eta`` is ``gain`` times the peak learning rate. With a gain of 1
and usual rates, ``U`` follows in about 150 optimizer steps, somewhat slower than ``K``, so that it does not swing; a
short phase wants a larger gain and a smaller momentum. Weights of 8 bits are left out: nearly all of their codes
change in every optimizer step. For a merged query and key, codes are those of the product and ``U`` is that of both
projections.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ofqctl.layers import WeightSite
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import encode
from ofqctl.remedies.low_bits import low_bit_sites
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import Schedule, Scheduled

_KEY = "trs"
_LISTS = ("params", "param_names")  # what a group of an optimizer has for each parameter


class TRS(RemedySettings):
    """Transition rate scheduling (Lee et al. 2025).

    Attributes:
        rate: Share of the codes that an optimizer step is to change at the start, divided by the root of their bits; it
            falls along a cosine to 0.
        momentum: Weight of the optimizer steps before the latest in the average of that share.
        gain: How fast learning rates follow, in peak learning rates for each optimizer step and unit of the share.
    """

    rate: float = Field(default=5e-3, gt=0.0, lt=1.0)
    momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    gain: float = Field(default=1.0, gt=0.0)

    def at_end(self) -> Self:
        """Settings by which no codes are to change."""
        return self.model_copy(update={"rate": 0.0})


@REMEDIES.register(_KEY, TRS)
class TransitionRates(Scheduled):
    """Sets the learning rate of each latent weight by how many of its codes change.

    Args:
        model: The quantized and calibrated model.
        settings: The target, and how learning rates follow it.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: TRS, steps: int) -> None:
        super().__init__(Schedule(settings.rate, 0.0, 0.0, steps))
        self._settings = settings
        self._sites = low_bit_sites(model, _KEY)
        self._layers: dict[str, _Layer] = {}
        self._optimizer: Optimizer | None = None

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Check that ``model`` has weights of fewer than 8 bits."""
        super().check(model, settings)
        low_bit_sites(model, _KEY)

    def begin(self, optimizer: Optimizer) -> None:
        """Give the latent weights that are trained groups of their own in the optimizer."""
        self._optimizer = optimizer
        for name, site in self._sites.items():
            parameters = [parameter for parameter in site.latent_parameters() if parameter.requires_grad]
            if parameters:
                self._layers[name] = _Layer(site, optimizer, parameters, self._settings.rate)

    def before_step(self) -> None:
        """Set the learning rates, and keep grid steps as they are."""
        for layer in self._layers.values():
            layer.group["lr"] = layer.lr
            assert layer.site.weight_quantizer is not None
            for parameter in layer.site.weight_quantizer.parameters():
                parameter.grad = None

    def after_step(self) -> None:
        """Count codes that changed, and let the learning rates follow."""
        target = self.strength or 0.0
        super().after_step()
        changed = [layer.changed() for layer in self._layers.values()]
        for layer, share in zip(self._layers.values(), torch.stack(changed).tolist() if changed else (), strict=True):
            layer.follow(target, share, self._settings)

    def close(self) -> None:
        """Put all parameters back into the groups that they are from."""
        for layer in self._layers.values():
            for key in _LISTS:
                layer.home.get(key, []).extend(layer.group.get(key, []))
        if self._optimizer is not None:
            own = [id(layer.group) for layer in self._layers.values()]
            self._optimizer.param_groups = [g for g in self._optimizer.param_groups if id(g) not in own]
        self._layers = {}

    def state_dict(self) -> dict[str, Tensor]:
        """``step``, the number of optimizer steps done, and for each weight ``NAME`` three tensors.

        ``NAME.codes``, ``NAME.average`` and ``NAME.lr``.
        """
        state = super().state_dict()
        for name, layer in self._layers.items():
            numbers = {"average": layer.average, "lr": layer.lr}
            state |= {f"{name}.{key}": torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}
            state[f"{name}.codes"] = layer.codes.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        super().load_state_dict(state)
        for name, layer in self._layers.items():
            layer.average, layer.lr = (float(state[f"{name}.{key}"]) for key in ("average", "lr"))
            layer.codes.copy_(state[f"{name}.codes"])


class _Layer:
    """One weight tensor and its learning rate.

    Args:
        site: The module that holds it.
        optimizer: The optimizer of its latent weight, at the start of a phase.
        parameters: The parameters of the latent weight that are trained; they get a group of their own.
        rate: Target of the share of codes that change, divided by the root of their bits.
    """

    def __init__(self, site: WeightSite, optimizer: Optimizer, parameters: list[nn.Parameter], rate: float) -> None:
        assert site.weight_quantizer is not None
        self.site = site
        self.codes = self._encode()
        self.home = next(g for g in optimizer.param_groups if any(p is parameters[0] for p in g["params"]))
        self.group = _taken_out(self.home, parameters)
        optimizer.add_param_group(self.group)
        self.peak = self.lr = float(self.home.get("initial_lr", self.home["lr"]))
        self.root = math.sqrt(site.weight_quantizer.plan.bits)
        self.average = self.root * rate

    def changed(self) -> Tensor:
        """The share of the codes that the last optimizer step changed, a scalar."""
        before, self.codes = self.codes, self._encode()
        return (self.codes != before).float().mean()

    def follow(self, target: float, changed: float, settings: TRS) -> None:
        """Update the average and the learning rate by the share of codes that changed."""
        self.average = settings.momentum * self.average + (1.0 - settings.momentum) * changed
        self.lr = max(0.0, self.lr + settings.gain * self.peak * (self.root * target - self.average))

    @torch.no_grad()
    def _encode(self) -> Tensor:
        return encode(self.site, self.site.latent()).codes


def _taken_out(home: dict[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """A group like ``home`` with these parameters, which ``home`` then lacks."""
    wanted = {id(parameter) for parameter in parameters}
    own = [id(parameter) in wanted for parameter in home["params"]]
    lists = {key: home[key] for key in _LISTS if key in home}
    for key, values in lists.items():
        home[key] = [value for value, taken in zip(values, own, strict=True) if not taken]
    taken_out = {key: [v for v, taken in zip(values, own, strict=True) if taken] for key, values in lists.items()}
    return home | taken_out
