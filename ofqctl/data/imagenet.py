"""ImageNet's classes by WordNet id, from timm: the order of the labels and their names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from ofqctl.data.spec import LabelSpace

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_TAG = re.compile(r"(^|_)in\d+k(_|$)")  # in timm's tags, such as augreg_in21k_ft_in1k


def are_wordnet_ids(names: Iterable[str]) -> bool:
    """Whether every name looks like a WordNet noun id, such as n01440764."""
    return all(_WORDNET_ID.fullmatch(name) for name in names)


def imagenet_title(num_classes: int) -> str | None:
    """The ImageNet variant with that many classes, e.g. 'ImageNet-1k' for 1000, or None."""
    from timm.data.imagenet_info import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return subset and subset.replace("imagenet", "ImageNet")


def imagenet_ids(num_classes: int) -> tuple[str, ...] | None:
    """The WordNet ids, in label order, of the ImageNet variant with that many classes, or None."""
    title = imagenet_title(num_classes)
    return tuple(_imagenet(title).label_names()) if title else None


def names_of(cfg: Mapping[str, Any], num_classes: int, names: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """The class names of a model: its own, or the WordNet ids if timm's tag says that it was trained on ImageNet.

    A thousand classes alone do not make a model one of ImageNet's.

    Args:
        cfg: timm's description of the weights.
        num_classes: Number of classes of the model.
        names: Its own class names, in label order, or None.
    """
    if names:
        return tuple(names)
    return imagenet_ids(num_classes) if _IMAGENET_TAG.search(str(cfg.get("tag"))) else None


def spells_out(names: Sequence[str], ids: Sequence[str]) -> bool:
    """Whether the names are the words of these WordNet ids, in their order; one in ten may be spelled differently."""
    if len(names) != len(ids):
        return False
    info = _imagenet("ImageNet-22k")
    pairs = zip(names, (_words(info, wordnet_id) for wordnet_id in ids), strict=True)
    same = sum(name.lower().split(",")[0] == words.lower().split(",")[0] for name, words in pairs)
    return same >= 0.9 * len(ids)


def label_names(space: LabelSpace) -> tuple[str, ...]:
    """A readable name for every label.

    WordNet ids become words ('tench, Tinca tinca'); anything else keeps its name or number.
    """
    names = space.names
    if names is None:
        return tuple(f"class {label}" for label in range(space.num_classes))
    if not any(_WORDNET_ID.fullmatch(name) for name in names):
        return names
    info = _imagenet("ImageNet-22k")
    return tuple(_words(info, name) for name in names)


def _words(info: Any, name: str) -> str:
    try:
        return str(info.label_name_to_description(name))
    except KeyError:
        return name


@cache
def _imagenet(title: str) -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo(title)
