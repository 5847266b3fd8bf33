"""Apply a plan to a float model in place, and describe a quantized model by a plan."""

from collections.abc import Iterator, Mapping

from torch import nn

from ofqctl.layers import QuantConv2d, QuantLinear, WeightSite
from ofqctl.layers.attention import AttentionProducts, QKRProducts, QuantAttention, quantize_attention
from ofqctl.quantizers import Quantizer, build_quantizer
from ofqctl.recipe import Plan, QuantizerPlan
from ofqctl.recipe.plan import Replacement


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Swap the modules that ``plan`` names for quantized ones that hold the same parameters.

    Args:
        model: The float model that the plan was made for; changed in place, on its device.
        plan: The plan to apply.

    Raises:
        KeyError: The plan names a module that the model does not have.
    """
    device = next(model.parameters()).device
    replace_modules(model, plan.replaced)
    for name, module_plan in plan.modules.items():
        module = _named(model, name)
        if module_plan.kind in ("attention", "qkr"):
            quantize_attention(module, module_plan)
            continue
        swapped = (QuantConv2d if module_plan.kind == "conv2d" else QuantLinear)(module, module_plan)  # type: ignore[arg-type]
        _swap(model, module, swapped)
    model.to(device)


def replace_modules(model: nn.Module, replaced: Mapping[str, Replacement]) -> None:
    """Put what a plan says in place of float modules, with their parameters; what is in place already stays.

    Args:
        model: A float model, changed in place.
        replaced: What stands in place of which module.

    Raises:
        KeyError: There is no such module.
    """
    for name in replaced:
        norm = _named(model, name)
        if isinstance(norm, nn.LayerNorm):
            without_mean = nn.RMSNorm(norm.normalized_shape, eps=norm.eps)
            without_mean.weight = norm.weight
            _swap(model, norm, without_mean)


def _named(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise KeyError(name) from error


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    new.train(old.training)
    for parent, child in list(_places(model, old)):
        setattr(parent, child, new)


def _places(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every parent of ``module``, with the child's name there; several if blocks share it."""
    for name, held in model.named_modules(remove_duplicate=False):
        if held is module:
            parent, _, child = name.rpartition(".")
            yield model.get_submodule(parent), child


def requantize(model: nn.Module, plan: Plan) -> None:
    """Give a converted model new quantizers for its weights and activations, whose start values are not set yet.

    Args:
        model: The converted model, with latent weights; changed in place.
        plan: A plan of the same modules.
    """
    device = next(model.parameters()).device
    for name, module_plan in plan.modules.items():
        module = model.get_submodule(name)
        site = weight_site(module)
        if site is not None and site.weight_quantizer is not None and module_plan.weight is not None:
            if site.weight_quantizer.own_latents:  # beside the latent weight, which alone is none to quantize
                site.install_latent(site.quantized_weight().detach().clone())
            site.weight_quantizer = build_quantizer(module_plan.weight).to(device)
        for operand, quantizer in module_plan.operands.items():
            setattr(operand_holder(module), operand, build_quantizer(quantizer).to(device))


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


def origin_of(name: str) -> str:
    """The module of the float model that a planned one was made of; of a merged block's values, the projection."""
    return name.replace("products.v_proj", "qkv")


def weight_site(module: nn.Module) -> WeightSite | None:
    """The quantized weight of a planned module: its own, or the merged query-key product of an attention block."""
    if isinstance(module, QuantAttention) and isinstance(module.products, QKRProducts):
        return module.products.qk
    return module if isinstance(module, WeightSite) else None


def operand_holder(module: nn.Module) -> nn.Module:
    """What holds the activation quantizers of a planned module: itself, or the products of an attention block."""
    return module.products if isinstance(module, QuantAttention) else module


def operands(module: nn.Module) -> dict[str, Quantizer]:
    """The activation quantizers of a planned module, by operand name."""
    holder = operand_holder(module)
    names = ("input",) if not isinstance(holder, AttentionProducts) else ("x", "q", "k", "qkx", "softmax", "v")
    found = {name: getattr(holder, name, None) for name in names}
    return {name: q for name, q in found.items() if isinstance(q, Quantizer)}


def _described(quantizer: Quantizer | None) -> QuantizerPlan | None:
    return None if quantizer is None else quantizer.describe()
