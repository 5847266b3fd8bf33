"""Model names known to timm, and the rule that completes short names."""

import re
from dataclasses import dataclass

from timm.models import (
    get_arch_pretrained_cfgs,
    get_deprecated_models,
    get_pretrained_cfg,
    is_model,
    list_models,
    list_modules,
    split_model_name_tag,
)

from ofqctl.errors import ModelError, did_you_mean

_SHOWN = 8
_WILDCARDS = frozenset("*?[")
_PLAIN_REST = re.compile(r"(?:(?:patch|p)(?P<patch>\d+)_)?(?:window(?P<window>\d+)_)?(?P<size>\d+)")
_PLAIN_END = re.compile(f"_{_PLAIN_REST.pattern}$")


def resolve_name(name: str) -> str:
    """The timm model that ``name`` stands for.

    A name that timm knows is used unchanged, with or without a tag (``vit_tiny_patch16_224.augreg_in21k``); a name that
    timm has renamed becomes the new name; a name with a source prefix (``hf-hub:``, ``local-dir:``) is returned
    unchanged. Any other name is completed:

    1. The candidates are the architectures whose name is the short name, then ``_``, then only a patch size, a window
       size and the image size, in this order, of which the first two may be absent: ``patch16_224``,
       ``patch4_window7_224``, ``window8_256``, ``224``. Anything else in a name (``distilled``, ``clip``, ``dinov3``,
       ``reg4``, ``gap``, ``r50``, ...) changes the architecture, so it must be written out.
    2. Of these, the ones for images of 224 pixels are kept; if there are none, the ones for 256 pixels; if
       there are none either, all.
    3. Of these, the ones with patches of 16 pixels are kept, if there are any.
    4. Of these, the one with the smallest window is kept.

    If exactly one is left, it is the model; otherwise the name is rejected with a list of the candidates. A tag after
    the short name is kept: ``deit_small.fb_in1k`` is ``deit_small_patch16_224.fb_in1k``.

    Raises:
        ModelError: The name is unknown or ambiguous, or timm has no such tag for the architecture.
    """
    if ":" in name:
        return name
    if "/" in name or "\\" in name:
        raise ModelError(
            f"model '{name}': looks like a hub id or a path, which are not timm names",
            hint=f"write 'hf-hub:{name}' or 'local-dir:{name}'",
        )
    short, tag = split_model_name_tag(name)
    renamed = get_deprecated_models().get(short)
    if renamed:
        architecture, new_tag = split_model_name_tag(renamed)
        tag = tag or new_tag
    else:
        architecture = short if is_model(short) else _complete(short)
    if not tag:
        return architecture
    _check_tag(architecture, tag)
    return f"{architecture}.{tag}"


def families() -> dict[str, list[str]]:
    """Every timm model module, such as ``swin_transformer``, with its architectures in natural order."""
    by_module = {module: list_models(module=module) for module in list_modules()}
    return {module: names for module, names in by_module.items() if names}


def matching(pattern: str | None = None) -> list[str]:
    """The timm models that match ``pattern``, in natural order.

    Args:
        pattern: Shell wildcards (``vit_*_224``), a plain word that occurs anywhere in the name, or None for all. A
            pattern with a dot, such as ``*.augreg*``, is matched against names with tags.
    """
    if not pattern:
        return list(list_models())
    wildcard = pattern if _WILDCARDS & set(pattern) else f"*{pattern}*"
    return list(list_models(wildcard, include_tags="." in pattern))


@dataclass(frozen=True)
class _Variant:
    """An architecture whose name adds only sizes to the short name; sizes are in pixels or tokens."""

    architecture: str
    patch: int | None
    window: int
    size: int


def _complete(short: str) -> str:
    """The one architecture that the rule in `resolve_name` finds for ``short``."""
    longer = [name for name in list_models() if name.startswith(f"{short}_")] if short else []
    plain = [variant for name in longer if (variant := _plain_variant(name, short))]
    found = [variant.architecture for variant in _preferred(plain)] if plain else longer
    if plain and len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous(short, found)
    raise unknown_architecture(f"model '{short}'", short)


def _plain_variant(architecture: str, short: str) -> _Variant | None:
    """The sizes in the name of ``architecture``, or None if it adds more than sizes to ``short``.

    A last number that is not timm's image size for it (such as the width in ``levit_256``) is not a size.
    """
    match = _PLAIN_REST.fullmatch(architecture.removeprefix(f"{short}_"))
    cfg = get_pretrained_cfg(architecture)
    if match is None or cfg is None or cfg.input_size[-1] != int(match["size"]):
        return None
    patch = int(match["patch"]) if match["patch"] else None
    return _Variant(architecture, patch, int(match["window"] or 0), int(match["size"]))


def _preferred(variants: list[_Variant]) -> list[_Variant]:
    """The ``variants`` (at least one) that remain after steps 2 to 4 of the rule in `resolve_name`."""
    sizes = {variant.size for variant in variants}
    size = next((wanted for wanted in (224, 256) if wanted in sizes), None)
    variants = [variant for variant in variants if size in (None, variant.size)]
    variants = [variant for variant in variants if variant.patch == 16] or variants
    smallest = min(variant.window for variant in variants)
    return [variant for variant in variants if variant.window == smallest]


def _check_tag(architecture: str, tag: str) -> None:
    """Check that timm has the tag for ``architecture``."""
    tags = [known for name in get_arch_pretrained_cfgs(architecture) if (known := split_model_name_tag(name)[1])]
    if tag not in tags:
        raise ModelError(
            f"model '{architecture}': no pretrained weights are tagged '{tag}'; tags: {', '.join(tags) or 'none'}",
            hint=did_you_mean(tag, tags) or f"write '{architecture}' for the default weights",
        )


def unknown_architecture(where: str, architecture: str) -> ModelError:
    """An error for an unknown name, with the most similar full or short name that timm knows."""
    names = list_models()
    short_names = {_PLAIN_END.sub("", name) for name in names}
    suggestion = did_you_mean(architecture, sorted(short_names.union(names)))
    listing = "`ofqctl models 'PATTERN'` lists the names"
    return ModelError(
        f"{where}: timm has no architecture called '{architecture}'",
        hint=f"{suggestion} {listing}" if suggestion else listing,
    )


def _ambiguous(short: str, found: list[str]) -> ModelError:
    shown = sorted(found, key=len)[:_SHOWN]
    more = f", and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return ModelError(
        f"model '{short}': not a timm name, and no single plain variant completes it; "
        f"candidates: {', '.join(shown)}{more}",
        hint=f"write one of them in full; `ofqctl models '{short}_*'` lists them all",
    )
