"""Find splits by name."""

from collections.abc import Sequence

from ofqctl.errors import DataError, did_you_mean

_ALIASES = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))
SPLIT_NAMES = frozenset(name for names in _ALIASES for name in names)


def find_split(asked: str, available: Sequence[str], where: str) -> str:
    """The available split that ``asked`` names; 'val' and 'validation' are equivalent.

    Raises:
        DataError: There is no such split.
    """
    if asked in available:
        return asked
    same = next((names for names in _ALIASES if asked.lower() in names), ())
    for name in available:
        if name.lower() in same:
            return name
    other = next((name for name in available if not name.startswith("train")), available[0])
    raise DataError(
        f"{where}: no split '{asked}'; available are {', '.join(available)}",
        hint=did_you_mean(asked, available) or f"--split {other}",
    )


def default_split(available: Sequence[str], where: str) -> str:
    """The split to read when none was named: the validation or test split, else the only one.

    Raises:
        DataError: There are several splits, and none of them is for validation.
    """
    for name in ("validation", "val", "test"):
        if name in available:
            return name
    if len(available) == 1:
        return available[0]
    raise DataError(
        f"{where}: no split was named; available are {', '.join(available)}", hint=f"--split {available[0]}"
    )
