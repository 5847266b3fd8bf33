"""Allow several values after one flag, and parse option values."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from ofqctl.errors import ArtifactError, ModelError, RecipeError

SEVERAL_VALUES = ("--set", "--model-kwargs")
OF_STUDIES = ("--data", "--model")  # several values with `ofqctl study`, one elsewhere

_PAIR = re.compile(r"[A-Za-z_][\w.-]*=")
_BETWEEN_PAIRS = re.compile(r"(?:\s*,\s*|\s+)(?=[A-Za-z_]\w*=)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kb|mb|gb|kib|mib|gib)?", re.IGNORECASE)
_SIDES = re.compile(r"(-?\d+)(?:x(-?\d+))?")
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BITS = {str(bits) for bits in range(1, 9)}
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat the flag for each of several ``k=v`` values after it, as the parser expects.

    ``--set a.b=1 c=2`` becomes ``--set a.b=1 --set c=2``; so do ``--model-kwargs``, and ``--data`` and ``--model`` of a
    study. The values end at the first argument that is not of the form ``k=v``; a file with such a name must be placed
    before the flag.

    Args:
        arguments: Arguments of the command line.
    """
    result: list[str] = []
    several = SEVERAL_VALUES + (OF_STUDIES if arguments[:1] == ["study"] else ())
    flag, first = None, False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[position:]]
        if first:
            first = False
        elif flag is not None and _PAIR.match(argument):
            result.append(flag)
        else:
            name, attached, _ = argument.partition("=")
            flag = name if name in several else None
            first = flag is not None and not attached
        result.append(argument)
    return result


def parse_model_kwargs(texts: Sequence[str]) -> dict[str, Any]:
    """Parse ``k=v`` texts as arguments of an architecture.

    A text may contain several pairs, separated by commas or blanks. Values are Python literals, as in timm's own
    scripts; ``true``, ``false`` and ``none`` are accepted in any case, and anything else is text.

    Raises:
        ModelError: A text is not of the form ``k=v``.
    """
    pairs = [pair for text in texts for pair in _BETWEEN_PAIRS.split(text.strip())]
    kwargs = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or not value.strip():
            raise ModelError(
                f"--model-kwargs {pair}: expected NAME=VALUE", hint="--model-kwargs embed_dim=192 depth=12"
            )
        kwargs[key] = _value(value.strip())
    return kwargs


def parse_img_size(text: str) -> int | tuple[int, int]:
    """Parse a size of images: one number of pixels for both sides, or height and width as in ``224x128``.

    Raises:
        ModelError: The text is neither.
    """
    match = _SIDES.fullmatch(text.strip().lower())
    if match is None:
        raise ModelError(f"--img-size {text}: not a size of images", hint="--img-size 224, or 224x128 (height first)")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def parse_size(text: str) -> int:
    """Parse a size such as ``3MB``, ``2.5 MB``, ``800kB``, ``3MiB`` or a plain number; return bytes.

    Raises:
        RecipeError: The text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise RecipeError(
            f"--target-size {text}: not a size; expected something like 3MB, 800kB, 2.5MiB or a number of bytes"
        )
    return int(float(match[1]) * _UNITS[(match[2] or "b").lower()])


def parse_widths(option: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Parse bit-widths such as ``2,3,4,8``; return each once, in ascending order.

    Args:
        option: Name of the option, for messages.
        text: Value of the option.
        least: Smallest number of widths.

    Raises:
        RecipeError: The text is not a list of widths, a width is not 1-8, or there are too few.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = next((word for word in words if word not in _BITS), None)
    widths = tuple(sorted({int(word) for word in words if word in _BITS}))
    if wrong is not None or len(widths) < least:
        seen = f"'{text}'" if wrong is None else f"'{wrong}'"
        raise RecipeError(
            f"{option}: {seen}; expected {f'at least {least} ' if least > 1 else ''}widths from 1 to 8, separated by "
            "commas, such as 2,3,4,8"
        )
    return widths


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """Parse numbers >= 1 such as ``1,8``, in their order.

    Raises:
        ArtifactError: The text is not a list of such numbers.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise ArtifactError(f"{option}: '{text}'; expected numbers >= 1, separated by commas, such as 1,8")
    return tuple(int(word) for word in words)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
