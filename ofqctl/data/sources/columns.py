"""Which column of a `datasets` table holds the images, and which the labels."""

from collections.abc import Callable, Mapping
from typing import Any

from ofqctl.errors import DataError, did_you_mean

_IMAGE_NAMES = (
    "image",
    "img",
    "images",
    "pixel_values",
    "pixels",
    "picture",
    "photo",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target", "category", "y")

Features = Mapping[str, Any]


def image_column(features: Features, asked: str | None, where: str) -> tuple[str, str | None]:
    """Find the column of images; return it with a note if it was guessed.

    Raises:
        DataError: The requested column is missing, or the choice is ambiguous.
    """
    if asked is not None:
        return _named(features, asked, "image", where), None
    typed = [name for name, feature in features.items() if _is_image(feature)]
    if len(typed) == 1:
        return typed[0], None
    guess = _guess(typed or list(features), _IMAGE_NAMES)
    if guess is None:
        raise DataError(
            f"{where}: no column is clearly the image; the columns are {', '.join(features)}",
            hint=f"--image-column {next(iter(typed or features), 'NAME')}",
        )
    return guess, f"image column '{guess}' was guessed from {', '.join(typed or features)}"


def label_column(features: Features, asked: str | None, where: str) -> tuple[str | None, str | None]:
    """Find the column of labels (None if there is none); return it with a note if it was guessed or not found.

    Raises:
        DataError: The requested column is missing or holds neither integers nor text, or the choice is ambiguous.
    """
    if asked is not None:
        name = _named(features, asked, "label", where)
        if not (is_class_label(features[name]) or is_integer(features[name]) or is_text(features[name])):
            raise DataError(
                f"{where}: label column '{name}' is of type {features[name]}; allowed are integers and text"
            )
        return name, None
    typed = [name for name, feature in features.items() if is_class_label(feature)]
    if len(typed) == 1:
        return typed[0], None
    others = [name for name, feature in features.items() if is_integer(feature) or is_text(feature)]
    guess = _guess(typed or others, _LABEL_NAMES)
    if guess is not None:
        return guess, f"label column '{guess}' was guessed from {', '.join(typed or others)}"
    if typed:
        raise DataError(
            f"{where}: the columns {', '.join(typed)} all hold class labels",
            hint=f"--label-column {typed[0]}",
        )
    return (
        None,
        f"no label column among {', '.join(features)}: the images are unlabelled (--label-column NAME)",
    )


def is_class_label(feature: Any) -> bool:
    """Whether a feature is an integer with class names."""
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)


def is_integer(feature: Any) -> bool:
    """Whether a feature is a plain integer."""
    return _is_value(feature, lambda dtype: dtype.startswith(("int", "uint")))


def is_text(feature: Any) -> bool:
    """Whether a feature is text."""
    return _is_value(feature, lambda dtype: dtype in ("string", "large_string", "string_view"))


def _is_value(feature: Any, accepts: Callable[[str], bool]) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and accepts(feature.dtype)


def _is_image(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image)


def _named(features: Features, name: str, role: str, where: str) -> str:
    if name not in features:
        raise DataError(
            f"{where}: no {role} column '{name}'; the columns are {', '.join(features)}",
            hint=did_you_mean(name, features) or f"leave out --{role}-column to let it be found",
        )
    return name


def _guess(candidates: list[str], known: tuple[str, ...]) -> str | None:
    """The candidate whose name comes first in the list of known names."""
    by_name = {name.lower(): name for name in candidates}
    return next((by_name[name] for name in known if name in by_name), None)
