"""Quantizers turn tensors into codes: one file for each method, all following the contract in ``base``."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ofqctl.hooks import shadowed
from ofqctl.quantizers.aoq import AOQ
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.fake_quantize import computed_again, straight_through
from ofqctl.quantizers.fusing import fused, set_fused
from ofqctl.quantizers.lsq import LSQ
from ofqctl.quantizers.quest import QuEST
from ofqctl.quantizers.statsq import StatsQ
from ofqctl.quantizers.uniform import Uniform
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import QuantizerPlan


@contextmanager
def without(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Within the block, these quantizers leave tensors unchanged."""
    with ExitStack() as stack:
        for quantizer in quantizers:
            stack.enter_context(shadowed(quantizer, "forward", lambda x: x))
        yield


def build_quantizer(plan: QuantizerPlan) -> Quantizer:
    """Build the quantizer that ``plan`` describes; its start values are not set yet.

    Its grid steps can be trained even if it is built under ``torch.inference_mode``.
    """
    with torch.inference_mode(False):
        quantizer: Quantizer = QUANTIZERS[plan.method].target(plan)
    return quantizer


__all__ = [
    "AOQ",
    "LSQ",
    "QUANTIZERS",
    "QuEST",
    "Quantizer",
    "QuantizerPlan",
    "StatsQ",
    "Uniform",
    "build_quantizer",
    "by_group",
    "computed_again",
    "fused",
    "set_fused",
    "straight_through",
    "without",
]
