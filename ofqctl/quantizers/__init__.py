"""How a tensor becomes codes: one file a method, all against the contract in ``base``."""

import torch

from ofqctl.quantizers.base import Quantizer
from ofqctl.quantizers.fake_quantize import saved_as_codes
from ofqctl.quantizers.fusing import fused, set_fused
from ofqctl.quantizers.lsq import LSQ
from ofqctl.quantizers.statsq import StatsQ
from ofqctl.quantizers.uniform import Uniform
from ofqctl.recipe.plan import QuantizerPlan

METHODS: dict[str, type[Quantizer]] = {quantizer.method: quantizer for quantizer in (StatsQ, LSQ, Uniform)}


def build_quantizer(plan: QuantizerPlan) -> Quantizer:
    """The quantizer that ``plan`` describes, with start values still to be set.

    Its steps can be trained, even if it is built under ``torch.inference_mode``.
    """
    with torch.inference_mode(False):
        return METHODS[plan.method](plan)


__all__ = [
    "LSQ",
    "METHODS",
    "Quantizer",
    "QuantizerPlan",
    "StatsQ",
    "Uniform",
    "build_quantizer",
    "fused",
    "saved_as_codes",
    "set_fused",
]
