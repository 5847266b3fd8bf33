"""A weight that is quantized: computed from its latent weight, or fixed codes that were decoded once."""

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

    The value is computed from the latent weight at every call, in training and in evaluation: what a latent weight or a
    quantizer was changed to through ``.data`` or NumPy leaves no trace by which a stored value could be known to be
    out of date, and comparing the values takes about as long as quantizing them. Who takes many passes through a model
    that stays as it is says so with ``values_kept``. A module read from an artifact has no latent weight any more: its
    codes are fixed and their value is decoded once for good.

    Attributes:
        weight_quantizer: None keeps the weight in float.
        latent_names: The parameters and buffers that the latent weight is made of.
    """

    weight_quantizer: Quantizer | None
    latent_names: ClassVar[tuple[str, ...]] = ("weight",)

    @abstractmethod
    def latent(self) -> Tensor:
        """The float weight behind the codes."""

    @abstractmethod
    def install_value(self, value: Tensor) -> None:
        """Take ``value``, the decoded codes, in place of the latent weight."""

    def install_latent(self, value: Tensor) -> None:
        """Take ``value`` as the latent weight, where codes were fixed; here their value has the same place."""
        self.install_value(value)

    def hold(self, entries: Tensor, value: Tensor) -> None:
        """Give the latent weight ``value`` at ``entries``; here it is a parameter, and the rest of it stays as it is.

        Args:
            entries: Bool, like the latent weight.
            value: Like the latent weight.
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
        """Codes, steps and grid of the weight; None if it is float."""
        if self.weight_quantizer is None:
            return None
        if self.fixed_codes is not None:
            return self.fixed_codes
        with torch.no_grad():
            return self.weight_quantizer.encode(self.latent())

    @property
    def fixed_codes(self) -> Encoded | None:
        """The codes that came from an artifact, or None if the weight is still latent."""
        return self.__dict__.get("_fixed_codes")

    def fix_codes(self, codes: Encoded) -> None:
        """Run on these codes from now on, without a latent weight."""
        with torch.inference_mode(False), torch.no_grad():
            self.install_value(codes.decode().to(self.latent()))
        self.__dict__["_fixed_codes"] = codes

    def release_codes(self, *, for_this_quantizer: bool) -> None:
        """Have a latent weight again in place of the fixed codes.

        Args:
            for_this_quantizer: Whether it is to be encoded as these very codes; otherwise it is their value.
        """
        codes = self.__dict__.pop("_fixed_codes")
        assert self.weight_quantizer is not None
        with torch.inference_mode(False), torch.no_grad():
            value = self.weight_quantizer.latent_of(codes) if for_this_quantizer else codes.decode()
            self.install_latent(value.to(self.latent()))


def weight_sites(model: nn.Module) -> Iterator[tuple[str, WeightSite]]:
    """Every quantized weight with the name it is stored under."""
    for name, module in model.named_modules():
        if isinstance(module, WeightSite) and module.weight_quantizer is not None:
            yield f"{name}.weight", module


@contextmanager
def values_kept(*models: nn.Module) -> Iterator[None]:
    """Within, each latent weight is quantized once, at its first use; neither it nor its quantizer may change there."""
    sites = [site for model in models for _, site in weight_sites(model)]
    for site in sites:
        site.__dict__["_kept"] = []
    try:
        yield
    finally:
        for site in sites:
            site.__dict__.pop("_kept", None)
