"""Quantize any timm vision transformer to 2-8 bits, measure it, and store it at its real bit-width."""

from ofqctl import environment

__version__ = "0.1.0"

environment.prepare()
