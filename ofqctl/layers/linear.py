"""Linear with a quantized weight and a quantized input."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.layers.weight import WeightSite
from ofqctl.quantizers import build_quantizer, computed_again
from ofqctl.recipe import ModulePlan


class QuantLinear(nn.Linear, WeightSite):
    """``F.linear(input(x), quantized_weight(), bias)``; keeps the parameters of the float layer.

    Args:
        linear: The float layer.
        plan: Quantizers of its ``weight`` and ``input``; a missing one stays float.

    Attributes:
        product: Computes the output from input, weight and bias. A remedy may replace it for a phase by one whose
            gradients are computed in another way.
    """

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(F.linear)

    def __init__(self, linear: nn.Linear, plan: ModulePlan) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_quantizer = None if plan.weight is None else build_quantizer(plan.weight)
        operand = plan.operands.get("input")
        self.input = nn.Identity() if operand is None else build_quantizer(operand)

    def latent(self) -> Tensor:
        """(out, in)."""
        return self.weight

    def install_value(self, value: Tensor) -> None:
        """Replace the weight, (out, in)."""
        self.weight = nn.Parameter(value, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = self.input(x)
        weight = self.quantized_weight()
        with computed_again(x, weight):
            return self.product(x, weight, self.bias)
