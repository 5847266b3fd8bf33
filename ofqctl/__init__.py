"""Quantize any timm vision transformer to 2-8 bits, measure it, and store it at its real bit-width."""

__version__ = "0.1.0"
