"""A quantized weight: computed from its latent weight, or decoded once from fixed codes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.quantizers import Quantizer


class WeightSite(nn.Module, ABC):
    """Mix-in for a module with one quantized weight.

    The value is computed from the latent weight at every call, in training and in evaluation. It is not cached, because
    changes through ``.data`` or NumPy cannot be detected, and comparing weights takes about as long as quantizing them.
    Use ``values_kept`` for many passes through a model that does not change. A module read from a file has no latent
    weight: its codes are fixed and decoded only once.

    Attributes:
        weight_quantizer: Quantizer of the weight; None keeps the weight in float.
        latent_names: Names of the parameters and buffers that the latent weight is computed from.
    """

    weight_quantizer: Quantizer | None
    latent_names: ClassVar[tuple[str, ...]] = ("weight",)

    @abstractmethod
    def latent(self) -> Tensor:
        """The latent weight."""

    def latent_parameters(self) -> list[nn.Parameter]:
        """The parameters that the latent weight is computed from: one, or the two projections of a merged product."""
        tensors = (getattr(self, name) for name in self.latent_names)
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    @abstractmethod
    def install_value(self, value: Tensor) -> None:
        """Replace the latent weight by ``value``, the decoded codes."""

    def install_latent(self, value: Tensor) -> None:
        """Set the latent weight to ``value`` after codes were fixed; by default both are stored in the same tensor."""
        self.install_value(value)

    def hold(self, entries: Tensor, value: Tensor) -> None:
        """Set the latent weight to ``value`` at ``entries``; other entries of a parameter stay unchanged.

        Args:
            entries: Which entries to set; bool, in the shape of the latent weight.
            value: New values, in the shape of the latent weight.
        """
        with torch.no_grad():
            latent = self.latent()
            latent.copy_(torch.where(entries, value, latent))

    def quantized_weight(self) -> Tensor:
        """The weight to compute with, differentiable with respect to the latent weight."""
        if self.weight_quantizer is None or self.fixed_codes is not None:
            return self.latent()
        kept: list[Tensor] | None = self.__dict__.get("_kept")
        if kept:
            return kept[0]
        value: Tensor = self.weight_quantizer(self.latent())
        if kept is not None:
            kept.append(value)
        return value

    def encode_weight(self) -> Encoded | None:
        """Codes, grid steps and grid of the weight; None if it is float."""
        if self.weight_quantizer is None:
            return None
        if self.fixed_codes is not None:
            return self.fixed_codes
        with torch.no_grad():
            return self.weight_quantizer.encode(self.latent())

    @property
    def fixed_codes(self) -> Encoded | None:
        """The fixed codes, or None if there is a latent weight."""
        return self.__dict__.get("_fixed_codes")

    def fix_codes(self, codes: Encoded) -> None:
        """Use these fixed codes from now on, without a latent weight."""
        with torch.inference_mode(False), torch.no_grad():
            self.install_value(codes.decode().to(self.latent()))
        self.__dict__["_fixed_codes"] = codes

    def release_codes(self, *, for_this_quantizer: bool) -> None:
        """Replace the fixed codes by a latent weight.

        Args:
            for_this_quantizer: Whether the latent weight is one that this quantizer encodes as these codes; otherwise
                it is their decoded value.
        """
        codes = self.__dict__.pop("_fixed_codes")
        assert self.weight_quantizer is not None
        with torch.inference_mode(False), torch.no_grad():
            value = self.weight_quantizer.latent_of(codes) if for_this_quantizer else codes.decode()
            self.install_latent(value.to(self.latent()))


def weight_sites(model: nn.Module) -> Iterator[tuple[str, WeightSite]]:
    """Every quantized weight, with the name that it is stored under."""
    for name, module in model.named_modules():
        if isinstance(module, WeightSite) and module.weight_quantizer is not None:
            yield f"{name}.weight", module


@contextmanager
def values_kept(*models: nn.Module) -> Iterator[None]:
    """Quantize each latent weight once within the block, at its first use; weights and quantizers must not change."""
    sites = [site for model in models for _, site in weight_sites(model)]
    for site in sites:
        site.__dict__["_kept"] = []
    try:
        yield
    finally:
        for site in sites:
            site.__dict__.pop("_kept", None)
