"""How things that are compared are drawn."""

from typing import NamedTuple

_COLOURS = 8
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"))


class Look(NamedTuple):
    """Name of a colour of the page, whether lines are dashed, Matplotlib's name of the marker, and its sign in text."""

    colour: str
    dashed: bool
    marker: str
    sign: str


def look_of(number: int) -> Look:
    """A look: no two of the first 40 are alike, and of few no two are alike to those who see few colours."""
    marker, sign = _MARKERS[number % len(_MARKERS)]
    return Look(f"c{number % _COLOURS + 1}", number >= _COLOURS, marker, sign)
