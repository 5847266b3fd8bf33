"""ImageNet's classes by WordNet id, from timm: the order of the labels and their names."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from ofqctl.data.spec import LabelSpace

_WORDNET_ID = re.compile(r"n\d{8}")


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


def label_names(space: LabelSpace) -> tuple[str, ...]:
    """A readable name for every label.

    WordNet ids become words ('tench, Tinca tinca'). If the names are unknown but the number of classes is that of an
    ImageNet variant, its words are used. Anything else keeps its name or number.
    """
    names = space.names or imagenet_ids(space.num_classes)
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
