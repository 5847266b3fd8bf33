"""Conv2d with a quantized weight and a quantized input."""

from typing import Any

from torch import Tensor, nn

from ofqctl.layers.weight import WeightSite
from ofqctl.quantizers import build_quantizer, computed_again
from ofqctl.recipe import ModulePlan

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class QuantConv2d(nn.Conv2d, WeightSite):
    """Convolution of the quantized input with the quantized weight; keeps the parameters of the float layer.

    Args:
        conv: The float layer; timm's ``Conv2dSame`` keeps its padding.
        plan: Quantizers of its ``weight`` and ``input``; a missing one stays float.
    """

    def __init__(self, conv: nn.Conv2d, plan: ModulePlan) -> None:
        from timm.layers.conv2d_same import Conv2dSame

        geometry: dict[str, Any] = {name: getattr(conv, name) for name in _GEOMETRY}
        super().__init__(**geometry, bias=conv.bias is not None, device="meta")  # parameters are set below
        self.weight, self.bias = conv.weight, conv.bias
        self.pads_same = isinstance(conv, Conv2dSame)
        self.weight_quantizer = None if plan.weight is None else build_quantizer(plan.weight)
        operand = plan.operands.get("input")
        self.input = nn.Identity() if operand is None else build_quantizer(operand)

    def latent(self) -> Tensor:
        """(out, in / groups, height, width)."""
        return self.weight

    def install_value(self, value: Tensor) -> None:
        """Replace the weight, (out, in / groups, height, width)."""
        self.weight = nn.Parameter(value, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, height, width) -> (batch, out, height, width)."""
        x = operand = self.input(x)
        if self.pads_same:
            from timm.layers.padding import pad_same

            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        weight = self.quantized_weight()
        with computed_again(operand, weight):
            convolved: Tensor = self._conv_forward(x, weight, self.bias)
        return convolved
