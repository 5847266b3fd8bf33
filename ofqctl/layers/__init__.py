"""Quantized Linear, Conv2d and attention: the modules of a converted model."""

from ofqctl.layers.conv import QuantConv2d
from ofqctl.layers.linear import QuantLinear
from ofqctl.layers.weight import WeightSite, values_kept, weight_sites

__all__ = ["QuantConv2d", "QuantLinear", "WeightSite", "values_kept", "weight_sites"]
