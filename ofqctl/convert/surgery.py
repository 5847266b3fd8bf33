"""Apply a plan to a float model in place, and describe a quantized model by a plan."""

from collections.abc import Iterator

from torch import nn

from ofqctl.layers import QuantConv2d, QuantLinear, WeightSite
from ofqctl.layers.attention import AttentionProducts, QKRProducts, QuantAttention, quantize_attention
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan, QuantizerPlan


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Swap the modules that ``plan`` names for quantized ones that hold the same parameters.

    Args:
        model: The float model that the plan was made for; changed in place, on its device.
        plan: The plan to apply.

    Raises:
        KeyError: The plan names a module that the model does not have.
    """
    device = next(model.parameters()).device
    for name, module_plan in plan.modules.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise KeyError(name) from error
        if module_plan.kind in ("attention", "qkr"):
            quantize_attention(module, module_plan)
            continue
        swapped = (QuantConv2d if module_plan.kind == "conv2d" else QuantLinear)(module, module_plan)  # type: ignore[arg-type]
        swapped.train(module.training)
        for parent, child in list(_places(model, module)):
            setattr(parent, child, swapped)
    model.to(device)


def _places(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every parent of ``module``, with the child's name there; several if blocks share it."""
    for name, held in model.named_modules(remove_duplicate=False):
        if held is module:
            parent, _, child = name.rpartition(".")
            yield model.get_submodule(parent), child


def describe(model: nn.Module, plan: Plan) -> Plan:
    """The plan of the calibrated model, with everything decided that ``plan`` left to the data."""
    modules = {}
    for name, module_plan in plan.modules.items():
        module = model.get_submodule(name)
        weight = weight_site(module)
        modules[name] = module_plan.model_copy(
            update={
                "weight": None if weight is None else _described(weight.weight_quantizer),
                "operands": {n: q.describe() for n, q in operands(module).items()},
            }
        )
    return plan.model_copy(update={"modules": modules})


def weight_site(module: nn.Module) -> WeightSite | None:
    """The quantized weight of a planned module: its own, or the merged query-key product of an attention block."""
    if isinstance(module, QuantAttention) and isinstance(module.products, QKRProducts):
        return module.products.qk
    return module if isinstance(module, WeightSite) else None


def operands(module: nn.Module) -> dict[str, Quantizer]:
    """The activation quantizers of a planned module, by operand name."""
    holder = module.products if isinstance(module, QuantAttention) else module
    names = ("input",) if not isinstance(holder, AttentionProducts) else ("x", "q", "k", "qkx", "softmax", "v")
    found = {name: getattr(holder, name, None) for name in names}
    return {name: q for name, q in found.items() if isinstance(q, Quantizer)}


def _described(quantizer: Quantizer | None) -> QuantizerPlan | None:
    return None if quantizer is None else quantizer.describe()
