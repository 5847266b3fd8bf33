"""List timm's models, and how much of each family's attention can be quantized, without building models."""

import dis
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import nn

from ofqctl.errors import ModelError, did_you_mean
from ofqctl.layers.attention.forms import FORMS
from ofqctl.models import families, matching
from ofqctl.progress import Progress, silent
from ofqctl.results.models import Coverage, Family, ListedModel, ModelsResult

COVERAGE: dict[Coverage, str] = {
    "products": "layers and the products of attention are quantized",
    "layers": "layers are quantized, the products of attention stay float",
    "none": "no attention found in its code; layers are quantized",
}


@dataclass(frozen=True)
class CoverageRequest:
    """A request to list models.

    Attributes:
        pattern: Shell wildcards, a word in the name, or None for all; see `ofqctl.models.matching`.
    """

    pattern: str | None = None


def coverage(request: CoverageRequest, progress: Progress = silent) -> ModelsResult:
    """The matching models, and the coverage of their families.

    Coverage is determined from the code of each timm module, which names the attention classes that models of the
    family can use. A model may use only some of them; ``quantize`` reports exactly what it did.

    Raises:
        ModelError: No name matches.
    """
    progress("list the models", 0, None)
    names = matching(request.pattern)
    if not names:
        raise ModelError(
            f"models '{request.pattern}': no timm model matches",
            hint=did_you_mean(str(request.pattern), [*families(), *matching()])
            or "`ofqctl models` lists all families; wildcards go in quotes: 'vit_*_224'",
        )
    family_of = {name: family for family, members in families().items() for name in members}
    models = tuple(
        ListedModel(
            name=name,
            family=family_of[split_model_name_tag(name)[0]],
            pretrained=_has_weights(name),
            backbone=_has_no_classifier(name),
        )
        for name in names
    )
    wanted = dict.fromkeys(model.family for model in models)
    return ModelsResult(
        pattern=request.pattern,
        families=tuple(_family(family, [model for model in models if model.family == family]) for family in wanted),
        models=models,
        meaning=COVERAGE,
    )


def _family(name: str, models: list[ListedModel]) -> Family:
    classes = _attention_classes(sys.modules[f"timm.models.{name}"])
    covered = [cls for cls in classes if _path(cls) in FORMS]
    others = [cls for cls in classes if _path(cls) not in FORMS]
    return Family(
        family=name,
        models=len(models),
        pretrained=sum(model.pretrained for model in models),
        backbones=sum(model.backbone for model in models),
        attention="products" if covered else "layers" if others else "none",
        qkr=any(FORMS[_path(cls)].no_qkr is None for cls in covered),
        quantized_classes=tuple(cls.__name__ for cls in covered),
        float_classes=tuple(cls.__name__ for cls in others),
    )


def _has_weights(name: str) -> bool:
    cfg = get_pretrained_cfg(name)
    return bool(cfg and cfg.has_weights)


def _has_no_classifier(name: str) -> bool:
    cfg = get_pretrained_cfg(name)
    return cfg is not None and cfg.num_classes == 0


def _path(cls: type[nn.Module]) -> str:
    """The name of a class, as used by the registered forms."""
    return f"{cls.__module__}.{cls.__name__}".removeprefix("timm.")


def _attention_classes(module: ModuleType) -> list[type[nn.Module]]:
    """The attention classes that the code of a timm module refers to, sorted by name."""
    seen: set[Any] = set()
    waiting = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, FunctionType | type) and thing.__module__ == module.__name__
    ]
    while waiting:
        thing = waiting.pop()
        if thing not in seen:
            seen.add(thing)
            waiting.extend(_referred(thing))
    return sorted((thing for thing in seen if isinstance(thing, type) and _is_attention(thing)), key=_path)


@cache
def _is_attention(cls: type) -> bool:
    """Whether a class has a registered form, or its own code contains a softmax and a matrix product."""
    if not issubclass(cls, nn.Module):
        return False
    codes = [code for function in _functions(cls) for code in _codes(function.__code__)]
    names = {name for code in codes for name in code.co_names}
    if _path(cls) in FORMS or "scaled_dot_product_attention" in names:
        return True
    multiplies = bool(names & {"matmul", "einsum", "bmm"}) or any(
        instruction.argrepr == "@" for code in codes for instruction in dis.get_instructions(code)
    )
    return "softmax" in names and multiplies


@cache
def _referred(thing: FunctionType | type) -> tuple[FunctionType | type, ...]:
    """Classes and functions of timm's models, and classes of its layers, that the code of ``thing`` refers to."""
    found: list[Any] = list(thing.__bases__) if isinstance(thing, type) else []
    for function in _functions(thing):
        found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        names = {name for code in _codes(function.__code__) for name in code.co_names}
        found += [function.__globals__.get(name) for name in sorted(names)]
    classes = [f for f in found if isinstance(f, type) and f.__module__.startswith("timm.")]
    functions = [f for f in found if isinstance(f, FunctionType) and f.__module__.startswith("timm.models.")]
    return (*classes, *functions)


def _functions(thing: FunctionType | type) -> list[FunctionType]:
    """The function itself, or those that a class defines; without their decorators."""
    things = vars(thing).values() if isinstance(thing, type) else (thing,)
    return [inspect.unwrap(function) for function in things if isinstance(function, FunctionType)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
