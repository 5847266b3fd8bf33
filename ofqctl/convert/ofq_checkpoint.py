"""Convert the OFQ authors' checkpoint files (``.pth.tar``, timm layout) to a quantized model of ours.

Tensors are renamed and reshaped; every tensor is used, and no value of the model keeps its start value.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.convert.planning import make_plan
from ofqctl.convert.surgery import apply_plan
from ofqctl.errors import ArtifactError
from ofqctl.grids import CodeRange
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import ModulePlan, Plan, Recipe, Weights
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import ModuleKind
from ofqctl.recipe.schema import plan_for

# their name -> our name; `{}` stands for the first group
_QUANTIZER_NAMES = (
    (r"(.*)\.input_quant_fn\.s", "{}.input.step"),
    (r"(.*)\.lsqw_fn\.s", "{}.weight_quantizer.step"),
    (r"(.*)\.quan_a_(\w+)_fn\.s", "{}.products.{}.step"),
    (r"(.*)\.move_(qkx|v|q|k)_b4\.bias", "{}.products.{}.before"),
    (r"(.*)\.move_(qkx|v|q|k)_aft\.bias", "{}.products.{}.after"),
    (r"(.*)\.move_b4\.bias", "{}.input.before"),
    (r"(.*)\.move_aft\.bias", "{}.input.after"),
)
_QKR_NAMES = (
    (r"(.*)\.quant_x_4_qkv\.input_quant_fn\.s", "{}.products.x.step"),
    (r"(.*)\.quant_x_4_qkv\.move_b4\.bias", "{}.products.x.before"),
    (r"(.*)\.quant_x_4_qkv\.move_aft\.bias", "{}.products.x.after"),
    (r"(.*\.attn)\.(q|k)\.weight", "{}.products.qk.{}"),
    (r"(.*\.attn)\.v\.(weight|bias)", "{}.products.v_proj.{}"),
)
_CONSTANTS = (".clip_val", ".signed")  # StatsQ's constant 2, and whether a grid is signed


def recipe_for(state: Mapping[str, Tensor], *, wbits: int, abits: int) -> Recipe:
    """The recipe that a checkpoint was trained with.

    Args:
        state: The authors' state dict.
        wbits: Bits of the weights, which the file does not contain.
        abits: Bits of the activations, which the file does not contain.

    Raises:
        ArtifactError: This is not an OFQ checkpoint.
    """
    if not any(name.endswith(".input_quant_fn.s") for name in state):
        raise ArtifactError(
            "checkpoint: no OFQ quantizers in it (no name ends in '.input_quant_fn.s')",
            hint="`ofqctl quantize MODEL --checkpoint FILE` starts from a float checkpoint",
        )
    qkr = any(name.endswith(".attn.q.weight") for name in state)
    assignments = [
        "name=ofq/imported",
        f"weights.bits={wbits}",
        f"activations.bits={abits}",
        f"attention.qkr={str(qkr).lower()}",
        "attention.query_bias=false",
    ]
    return load("ofq/vit_w2a2", assignments)


def plan_of_weights(state: Mapping[str, Tensor], *, wbits: int) -> Plan:
    """The weight quantizers of a checkpoint, as far as names and shapes show them; no activation quantizers.

    Args:
        state: The authors' state dict.
        wbits: Bits of the weights that are neither first nor last, which the file does not contain.

    Raises:
        ArtifactError: This is not an OFQ checkpoint.
    """
    recipe = recipe_for(state, wbits=wbits, abits=wbits)
    modules: dict[str, ModulePlan] = {}
    for name, tensor in state.items():
        if name.endswith(".lsqw_fn.s"):
            module = name.removesuffix(".lsqw_fn.s")
            ones = (1,) * (state[f"{module}.weight"].dim() - 1)
            modules[module] = _weight_only("linear", recipe.last.weights, (len(tensor), *ones))
        elif name.endswith(".statsq_fn.clip_val"):
            module = name.removesuffix(".statsq_fn.clip_val")
            modules[module] = _weight_only("linear", recipe.weights, (len(state[f"{module}.weight"]), 1))
        elif name.endswith(".qk_quant.clip_val"):
            block = name.removesuffix(".qk_quant.clip_val")
            tokens, width = (state[f"{block}.{own}"] for own in ("quant_x_4_qkv.input_quant_fn.s", "q.weight"))
            heads = len(state[f"{block}.quan_a_qkx_fn.s"]) // len(tokens)
            modules[block] = _weight_only("qkr", recipe.weights, (heads, width.shape[1], 1))
            modules[f"{block}.products.v_proj"] = _weight_only("linear", recipe.weights, (width.shape[1], 1))
    return Plan(modules=modules)


def _weight_only(kind: ModuleKind, weights: Weights, step_shape: tuple[int, ...]) -> ModulePlan:
    weight = plan_for(weights, step_shape=step_shape)
    return ModulePlan(kind=kind, weight=weight)


def translate(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Convert the authors' tensors, or their gradients, to our names and shapes.

    Args:
        state: Tensors by the authors' names.
        shapes: Shapes of our tensors by our names; a tensor that fits none keeps its shape.
    """
    translated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_CONSTANTS):
            continue
        if name.endswith(".move_qkv_b4.bias"):
            block = name.removesuffix(".move_qkv_b4.bias")
            for operand, part in zip("qkv", tensor.chunk(3), strict=True):
                translated[f"{block}.products.{operand}.before"] = part
            continue
        translated[_our_name(name)] = tensor
    return {name: _in_our_shape(name, tensor, shapes.get(name)) for name, tensor in translated.items()}


def _in_our_shape(name: str, tensor: Tensor, shape: torch.Size | None) -> Tensor:
    if shape is None or shape.numel() != tensor.numel():
        return tensor
    if name.endswith(".qkx.step"):  # (token, head) in their order, (head, token, 1) in ours
        tensor = tensor.reshape(shape[1], shape[0]).T
    return tensor.reshape(shape)


def _our_name(name: str) -> str:
    for pattern, ours in (*_QKR_NAMES, *_QUANTIZER_NAMES):
        match = re.fullmatch(pattern, name)
        if match:
            return ours.format(*match.groups())
    return name


def load_ofq(model: nn.Module, state: Mapping[str, Tensor], recipe: Recipe, input_size: tuple[int, int, int]) -> Plan:
    """Convert a float model in place and give it the authors' tensors.

    Args:
        model: A timm model of the checkpoint's architecture, with any weights.
        state: The authors' state dict.
        recipe: Result of :func:`recipe_for`.
        input_size: Size of one image, (3, H, W).

    Raises:
        ArtifactError: Tensors do not fit the model or are missing; the message names each.
    """
    plan = make_plan(model, recipe, input_size)
    apply_plan(model, plan)
    wanted = model.state_dict()
    given = translate(state, {name: tensor.shape for name, tensor in wanted.items()})
    faults = [f"{n}: not in the file" for n in wanted if n not in given]
    faults += [f"{n}: not in the model" for n in given if n not in wanted]
    faults += [
        f"{n}: shape {tuple(t.shape)} in the file, {tuple(wanted[n].shape)} in the model"
        for n, t in given.items()
        if n in wanted and t.shape != wanted[n].shape
    ]
    if faults:
        shown = faults[:8] + ([f"and {len(faults) - 8} more"] if len(faults) > 8 else [])
        raise ArtifactError(
            "\n  ".join(["checkpoint: does not fit the model:", *shown]),
            hint="--model-kwargs gives widths, depths and sizes, such as embed_dim=192 depth=12 num_heads=3",
        )
    model.load_state_dict(given)
    _set_signs(model, state)
    return plan


def _set_signs(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set whether grids are signed where the authors left it to the data."""
    for name, flag in state.items():
        if name.endswith(".input_quant_fn.signed"):
            quantizer = model.get_submodule(f"{name.removesuffix('.input_quant_fn.signed')}.input")
            assert isinstance(quantizer, Quantizer)
            quantizer.range = CodeRange.of_bits(quantizer.plan.bits, signed=bool(flag.item()))
