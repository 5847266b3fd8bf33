"""Make the plan from a recipe and a float model: quantizers of each module, their shapes, and what stays in float."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import nn

from ofqctl.convert.survey import Seen, Shape, Survey, survey, takes_any_size
from ofqctl.convert.tensors import Kind, plan_operand
from ofqctl.errors import RecipeError, did_you_mean
from ofqctl.layers.attention.forms import form_of, why_no_form, why_no_qkr
from ofqctl.recipe import FLOAT_BITS, Activations, LeftFloat, ModulePlan, Plan, QuantizerPlan, Recipe, Weights
from ofqctl.recipe.plan import ModuleKind
from ofqctl.recipe.schema import Layer, plan_for

_FOR_EACH_TOKEN = ("token", "head")  # granularities with steps for each token, or for each query and key
_NEVER_NEGATIVE = (
    "GELU",
    "GELUTanh",
    "QuickGELU",
    "QuickGELUTanh",
    "ReLU",
    "ReLU6",
)  # except for GELU's small negative values


def make_plan(model: nn.Module, recipe: Recipe, input_size: Shape) -> Plan:
    """Decide what happens to every module of ``model``.

    Args:
        model: A float timm model.
        recipe: The recipe to follow.
        input_size: Size of one image, (3, H, W).

    Returns:
        The plan, which also lists each module left in float and why.

    Raises:
        RecipeError: An override matches no module, or changes none of those it matches.
    """
    planner = _Planner(model, recipe, survey(model, input_size))
    for name, module in model.named_modules():
        multiplies = form_of(module) is not None or planner.seen.products(name)
        if recipe.attention.products and multiplies:
            planner.plan_attention(name, module)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            planner.plan_layer(name, module)
    planner.check_overrides()
    return Plan(modules=planner.modules, left_float=tuple(planner.left_float))


def notes_on_sizes(model: nn.Module, recipe: Recipe) -> list[str]:
    """A note if a model takes images of any size, so that a recipe's steps for each token cannot be.

    Args:
        model: A float timm model.
        recipe: The recipe to follow.
    """
    activations = recipe.activations
    if not takes_any_size(model) or activations.bits == FLOAT_BITS or activations.granularity not in _FOR_EACH_TOKEN:
        return []
    merged = ", and queries and keys stay separate" if recipe.attention.qkr else ""
    return [f"images may have any size (dynamic_img_size), so what has a step for each token gets one for all{merged}"]


class _Planner:
    """Collects the plan of one model, module by module."""

    def __init__(self, model: nn.Module, recipe: Recipe, seen: Survey) -> None:
        self.recipe, self.seen = recipe, seen
        self.modules: dict[str, ModulePlan] = {}
        self.left_float: list[LeftFloat] = []
        on_image = [name for name, calls in seen.inputs.items() if calls.on_image]
        self.first = _named_by_timm(model, "first_conv", on_image) or on_image[:1]
        self.last = _named_by_timm(model, "classifier", on_image)
        self.never_negative = set(_second_layers(model))
        self._check_targets([*seen.inputs, *seen.operands])
        self._used: set[tuple[int, str]] = set()  # parts of overrides that some module asked for

    def plan_attention(self, name: str, module: nn.Module) -> None:
        """Plan the two products of a block; query and key are merged if the recipe asks for it and the block allows."""
        form, seen = form_of(module), self.seen.operands.get(name, {})
        if form is None or set(seen) != form.operands:
            reason = why_no_form(module) if form is None else "its products were not called in a dry run"
            self._leave(name, module, f"attention products: {reason}")
            return
        if self.recipe.attention.qkr:
            obstacle = why_no_qkr(module) or (None if seen["v"].shape else "its number of tokens varies")
            if obstacle is None:
                self._plan_merged(name, module, seen)
                return
            self._leave(name, module, f"query-key reparameterization: {obstacle}")
        operands = self._plan_operands(name, seen, signed_weights=form.signed_weights)
        self._keep(name, ModulePlan(kind="attention", operands=operands))

    def _plan_operands(
        self, name: str, seen: dict[str, Seen], *, signed_weights: bool = False
    ) -> dict[str, QuantizerPlan]:
        """Quantizers of those of ``q``, ``k``, ``softmax`` and ``v`` that were seen in the dry run."""
        activations = self._of_products(self._spec(name, "activations").activations)
        right = self._right_factor(activations)
        kinds: dict[str, Kind] = {"q": "heads", "k": "heads", "softmax": "softmax", "v": "values"}
        signs = {"softmax": None if signed_weights else False}
        return _present(
            {
                operand: plan_operand(
                    right if operand in ("k", "v") else activations,
                    kind,
                    seen[operand],
                    signed=signs.get(operand, True),
                )
                for operand, kind in kinds.items()
                if operand in seen
            }
        )

    def _of_products(self, activations: Activations) -> Activations:
        """The settings of what attention's products multiply."""
        return activations.model_copy(update={"dynamic": activations.dynamic or self.recipe.attention.dynamic})

    def _right_factor(self, activations: Activations) -> Activations:
        """The settings of keys and values."""
        bits = self.recipe.attention.kv_bits
        if bits is None or activations.bits == FLOAT_BITS or activations.bits <= bits:
            return activations
        return activations.model_copy(update={"bits": bits})

    def _plan_merged(self, name: str, module: Any, seen: dict[str, Seen]) -> None:
        spec = self._spec(name, "weights", "activations")
        heads, width = module.num_heads, module.qkv.in_features
        left = self._of_products(spec.activations)
        tokens = seen["v"].single[0][-2]
        x, qkx = (tokens, width), (heads, tokens, width)
        operands = {
            "x": plan_operand(left, "features", Seen([(1, *x)], [(2, *x)])),
            "qkx": plan_operand(self._right_factor(left), "head_features", Seen([(1, *qkx)], [(2, *qkx)])),
        }
        operands |= self._plan_operands(name, {operand: seen[operand] for operand in ("softmax", "v")})
        merged = _plan_weight(spec.weights, (heads, width, width))
        self.modules[name] = ModulePlan(
            kind="qkr", weight=merged, operands=_present(operands), query_bias=self.recipe.attention.query_bias
        )
        value = _plan_weight(self._spec(f"{name}.qkv", "weights").weights, (width, width))
        self._keep(f"{name}.products.v_proj", ModulePlan(kind="linear", weight=value))

    def plan_layer(self, name: str, module: nn.Linear | nn.Conv2d) -> None:
        """Plan a Linear or a convolution, unless it is part of a merged query and key."""
        block, _, child = name.rpartition(".")
        if child == "qkv" and block in self.modules and self.modules[block].kind == "qkr":
            return
        reason = self._why_float(name, module)
        if reason is not None:
            self._leave(name, module, reason)
            return
        spec, seen = self._spec(name, "weights", "activations"), self.seen.inputs[name]
        if isinstance(module, nn.Conv2d):
            operand = plan_operand(
                spec.activations, "pixels" if name in self.first else "feature_map", seen, signed=None
            )
        else:
            operand = plan_operand(spec.activations, "features", seen, signed=name not in self.never_negative)
        kind: ModuleKind = "conv2d" if isinstance(module, nn.Conv2d) else "linear"
        weight = _plan_weight(spec.weights, tuple(module.weight.shape))
        self._keep(name, ModulePlan(kind=kind, weight=weight, operands=_present({"input": operand})))

    def _spec(self, name: str, *parts: str) -> Layer:
        """The recipe's settings for ``name``: those of the first, last or any layer, changed by overrides in order.

        Args:
            name: Name of a module.
            *parts: Which settings the caller uses: ``weights``, ``activations``.
        """
        recipe = self.recipe
        layer = Layer(weights=recipe.weights, activations=recipe.activations)
        layer = recipe.first if name in self.first else recipe.last if name in self.last else layer
        for index, override in enumerate(recipe.layers):
            if fnmatchcase(name, override.target):
                self._used.update((index, part) for part in parts)
                layer = Layer(
                    weights=override.weights or layer.weights,
                    activations=override.activations or layer.activations,
                )
        return layer

    def _check_targets(self, known: Sequence[str]) -> None:
        for index, override in enumerate(self.recipe.layers):
            if not any(fnmatchcase(name, override.target) for name in known):
                raise RecipeError(
                    f"layers.{index}.target: '{override.target}' matches no module of this model",
                    hint=did_you_mean(override.target, known) or f"modules are named like '{known[0]}'",
                )

    def check_overrides(self) -> None:
        """Refuse an override of something that none of its modules has."""
        for index, override in enumerate(self.recipe.layers):
            for part in ("weights", "activations"):
                if getattr(override, part) is not None and (index, part) not in self._used:
                    raise RecipeError(
                        f"layers.{index}.{part}: no quantizer of this model's '{override.target}' takes them",
                        hint="products of attention have activations, and weights with qkr only; with qkr, *.qkv has "
                        "the weights of the values alone",
                    )

    def _why_float(self, name: str, module: nn.Linear | nn.Conv2d) -> str | None:
        if type(module) not in _plain_layers():
            return "its class changes the weight at every forward"
        if not self.seen.inputs[name].single:
            return "its forward was not called in a dry run"
        if not self.seen.inputs[name].on_image:
            return "its input does not depend on the image"
        return None

    def _leave(self, name: str, module: nn.Module, reason: str) -> None:
        self.left_float.append(LeftFloat(module=name, type=type(module).__name__, reason=reason))

    def _keep(self, name: str, plan: ModulePlan) -> None:
        if plan.weight is not None or plan.operands:
            self.modules[name] = plan


@cache
def _plain_layers() -> tuple[type[nn.Module], ...]:
    """Classes that multiply with their weight unchanged; the two timm classes compute the same as torch's."""
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.linear import Linear

    return nn.Linear, Linear, nn.Conv2d, Conv2dSame


def _named_by_timm(model: nn.Module, key: str, known: Sequence[str]) -> list[str]:
    """Names of known modules in timm's ``first_conv`` or ``classifier`` entry."""
    names = getattr(model, "pretrained_cfg", {}).get(key) or ()
    return [name for name in ((names,) if isinstance(names, str) else names) if name in known]


def _second_layers(model: nn.Module) -> Iterator[str]:
    """Names of the layers that read the output of a GELU or ReLU inside one MLP."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        activated = type(children.get("act")).__name__ in _NEVER_NEGATIVE and {"fc1", "fc2"} <= children.keys()
        if activated and isinstance(children.get("norm", nn.Identity()), nn.Identity):
            yield f"{name}.fc2" if name else "fc2"


def _present(operands: dict[str, QuantizerPlan | None]) -> dict[str, QuantizerPlan]:
    return {name: plan for name, plan in operands.items() if plan is not None}


def _plan_weight(weights: Weights, shape: Sequence[int]) -> QuantizerPlan | None:
    """The quantizer of a weight (out, in), (out, in, height, width) or a stack of matrices (heads, out, in)."""
    if weights.bits == FLOAT_BITS:
        return None
    channels = shape[:2] if len(shape) == 3 else shape[:1]
    ones = (1,) * (len(shape) - len(channels))
    step_shape = (*channels, *ones) if weights.granularity == "channel" else (1,) * len(shape)
    return plan_for(weights, step_shape=step_shape, shape=tuple(shape))
