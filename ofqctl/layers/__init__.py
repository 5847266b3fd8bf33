"""Quantized Linear, Conv2d and attention: what a converted model is made of."""

from ofqctl.layers.conv import QuantConv2d
from ofqctl.layers.linear import QuantLinear
from ofqctl.layers.weight import WeightSite, values_kept, weight_sites

__all__ = ["QuantConv2d", "QuantLinear", "WeightSite", "values_kept", "weight_sites"]
