"""What all results have in common."""

import math
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from ofqctl.registry import Frozen

FORMAT: Literal[1] = 1

Gives = Literal["classes", "embeddings"]
"""What a model gives for an image: a logit for each class, or an embedding."""

T = TypeVar("T")


class Part(Frozen):
    """A part of a result: it cannot be changed, and has the named keys alone."""


class Document(Part):
    """The result of a command; each names its ``command``, too.

    Attributes:
        format: Version of the document; it changes when a key is removed or changes its meaning.
        notes: What was guessed, left out or should be known, one sentence each.
    """

    format: Literal[1] = FORMAT
    notes: tuple[str, ...] = ()


def _is_none(value: object) -> bool:
    return value is None


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


IfAny = Annotated[T | None, Field(exclude_if=_is_none)]
"""A value whose key is missing from the JSON where there is none."""

Number = Annotated[float | None, BeforeValidator(_finite)]
"""A number that may have become infinite or not a number, which JSON lacks: None."""
