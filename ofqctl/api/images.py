"""Images that a caller gives as tensors."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofqctl.errors import DataError

_ONE = "one tensor of normalized images, (B, 3, H, W), or a pair of images and labels"
_PAIR = "pairs of normalized images, (B, 3, H, W), and labels, (B,)"


def batches_of_images(given: Iterable[Any], what: str) -> Iterator[Tensor]:
    """The images of batches; of pairs of images and labels, the images.

    Args:
        given: A tensor, or what gives tensors or pairs, such as a DataLoader.
        what: Name of the argument, for messages.

    Raises:
        DataError: An element is something else, or its images differ in size from those before.
    """
    size: tuple[int, ...] | None = None
    for number, element in enumerate(_elements(given, what, _ONE)):
        where = f"{what}: element {number}"
        images = element[0] if isinstance(element, tuple | list) and len(element) == 2 else element
        yield _checked(images, element, where, _ONE, size)
        size = images.shape[1:]


def labelled_batches(given: Iterable[Any], what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images with their labels.

    Raises:
        DataError: An element is no pair of images and labels.
    """
    for number, element in enumerate(_elements(given, what, _PAIR)):
        yield _pair(element, f"{what}: element {number}")


def batches_and_labels(given: Iterable[Any], what: str) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images, with the labels of those that come as pairs.

    Raises:
        DataError: An element is neither images nor a pair of images and labels.
    """
    for number, element in enumerate(_elements(given, what, _ONE)):
        where = f"{what}: element {number}"
        if isinstance(element, tuple | list):
            yield _pair(element, where)
        else:
            yield _checked(element, element, where, _ONE, None), None


def check_have_names(save_predictions: str | Path | None) -> None:
    """Check that no rows are asked for of images that are given as tensors.

    Raises:
        DataError: They are.
    """
    if save_predictions is not None:
        raise DataError(
            f"save_predictions {save_predictions}: images of batches have no names; allowed: with data that is a path"
        )


def _pair(element: Any, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(element, tuple | list) or len(element) != 2:
        raise DataError(f"{where} is {_said(element)}; expected {_PAIR}", hint=_hint(element))
    images, labels = element
    images, labels = _checked(images, element, where, _PAIR, None), torch.as_tensor(labels)
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise DataError(f"{where} has labels that are {_said(labels)} for {len(images)} images; expected {_PAIR}")
    return images, labels


def peeked(batches: Iterator[Tensor]) -> tuple[tuple[int, int, int], Iterator[Tensor]]:
    """Size of one image, (3, H, W), and all the batches, of which the first was looked at."""
    first = next(batches)
    channels, height, width = first.shape[1:]

    def everything() -> Iterator[Tensor]:
        yield first
        yield from batches

    return (channels, height, width), everything()


def _elements(given: Any, what: str, expected: str) -> Iterator[Any]:
    """The elements of what was given, at least one."""
    try:
        elements = iter([given] if isinstance(given, Tensor) else given)
    except TypeError as error:
        raise DataError(f"{what}: is {_said(given)}; expected a path, or batches of images") from error
    empty = True
    for element in elements:
        empty = False
        yield element
    if empty:
        raise DataError(f"{what}: gives nothing; expected {expected}")


def _checked(images: Any, element: Any, where: str, expected: str, size: tuple[int, ...] | None) -> Tensor:
    if not isinstance(images, Tensor):
        raise DataError(f"{where} is {_said(element)}; expected {expected}", hint=_hint(element))
    if images.ndim != 4 or not len(images):
        one = "`.unsqueeze(0)` makes a batch of one image" if images.ndim == 3 else None
        raise DataError(f"{where} is {_said(images)}; expected {expected}", hint=one)
    if not images.is_floating_point():
        raise DataError(
            f"{where} has values of type {str(images.dtype).removeprefix('torch.')}; expected normalized floats",
            hint="`model.preprocess(image)` of a loaded model gives them",
        )
    if not images.isfinite().all():
        raise DataError(f"{where} has values that are NaN or infinite; allowed: finite values")
    if size is not None and images.shape[1:] != size:
        raise DataError(f"{where} has images of {tuple(images.shape[1:])}, those before are of {tuple(size)}")
    return images.float()


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value)}"
    return f"of type {type(value).__name__}"


def _hint(element: Any) -> str | None:
    tensors = [key for key, value in element.items() if isinstance(value, Tensor)] if isinstance(element, dict) else []
    return f"(batch[{tensors[0]!r}] for batch in loader) gives its tensors alone" if tensors else None
