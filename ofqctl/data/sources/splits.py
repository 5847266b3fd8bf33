"""Find splits by name, and choose one by what the data is opened for."""

from collections.abc import Sequence

from ofqctl.data.spec import Purpose
from ofqctl.errors import DataError, did_you_mean

_TRAIN = ("train", "training")
_VALIDATION, _TEST = ("val", "validation", "valid"), ("test", "testing")
_ALIASES = (_TRAIN, _VALIDATION, _TEST)
SPLIT_NAMES = frozenset(name for names in _ALIASES for name in names)
_FOR_MEASURING = ("val", "test", "dev", "eval")


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


def choose_split(available: Sequence[str], purpose: Purpose, where: str) -> tuple[str, str | None]:
    """The split to read when none was named, and a note unless it is the training split, read for its purpose.

    Training takes the training split, or the only one that is not for measuring; calibration the training split first;
    all else the validation split, then the test split, then the only one.

    Raises:
        DataError: None of the splits is for this purpose.
    """
    by_name = {name.lower(): name for name in available}
    only = available[0] if len(available) == 1 else None
    wanted = () if purpose == "evaluate" else _TRAIN
    found = next((by_name[name] for name in wanted if name in by_name), None)
    if found is not None:
        return found, None
    if purpose == "train":
        found = None if only is None or only.lower().startswith(_FOR_MEASURING) else only
    else:
        found = next((by_name[name] for name in (*_VALIDATION, *_TEST) if name in by_name), only)
    if found is None:
        what = "none is for training" if purpose == "train" else "no split was named"
        raise DataError(
            f"{where}: {what}; available are {', '.join(available)}", hint=f"--split {available[0]} takes this one"
        )
    return found, f"split '{found}' was chosen from {', '.join(available)}" if only is None else (
        f"split '{found}' was chosen, the only one in {where}"
    )
