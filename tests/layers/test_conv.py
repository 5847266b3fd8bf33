"""A quantized convolution is one of the same geometry."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ofqctl.layers import QuantConv2d
from ofqctl.recipe import ModulePlan

CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1), bias=False),
    nn.Conv2d(4, 6, 4, padding="same"),
    nn.Conv2d(4, 6, 2, stride=2, padding="valid"),
    nn.Conv2d(4, 8, 3, padding=(2, 1), groups=2, padding_mode="reflect"),
    Conv2dSame(4, 6, 3, stride=2),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_with_nothing_quantized_it_computes_what_the_original_does(conv):
    x = torch.randn(2, 4, 9, 8)
    before = torch.get_rng_state()
    quantized = QuantConv2d(conv, ModulePlan(kind="conv2d"))
    assert torch.equal(torch.get_rng_state(), before)  # a layer that only changes its class draws no start values
    assert torch.equal(quantized(x), conv(x))
    assert quantized.weight is conv.weight
    assert quantized.bias is conv.bias
