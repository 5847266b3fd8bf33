"""Where names stand beside points."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from matplotlib.transforms import Bbox

Position = Sequence[float]
"""How far right and how far up, in units of the page."""

_LONGEST = 22  # characters of a name
_AWAY, _HIGH = 8, 14  # distance of a name from its point, height of a name
_SHIFTS = sorted(range(-6 * _HIGH, 6 * _HIGH + 1, _HIGH), key=abs)


class Place(NamedTuple):
    """A place of a name: how far right of its point it begins or, below zero, left of it it ends, and how far up."""

    right: int
    up: int


def shortened(name: str) -> str:
    """A name without its middle if it is long."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def places(points: Sequence[Position], widths: Sequence[float], line: Sequence[Position], room: Bbox) -> list[Place]:
    """A place for the name of each point that covers no point, no line and no other name, as far as there is room.

    Args:
        points: The points.
        widths: Widths of their names; 0 for a point without a name.
        line: Corners of a line.
        room: Where names may stand.
    """
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    taken += [Bbox([[min(x, u), min(y, v)], [max(x, u), max(y, v)]]) for (x, y), (u, v) in pairwise(line)]
    found = [Place(_AWAY, 0)] * len(points)
    for number in sorted(range(len(points)), key=lambda number: -points[number][1]):
        if widths[number]:
            found[number], box = _place(points[number], widths[number], taken, room)
            taken.append(box)
    return found


def _place(point: Position, width: float, taken: list[Bbox], room: Bbox) -> tuple[Place, Bbox]:
    """The nearest place that covers least, on the side with more room first; and the box of the name there."""
    x, y = point
    sides = (_AWAY, -_AWAY) if x < (room.x0 + room.x1) / 2 else (-_AWAY, _AWAY)
    choice = [Place(right, up) for up in _SHIFTS for right in sides]
    boxes = [
        Bbox.from_bounds(x + at.right - (width if at.right < 0 else 0), y + at.up - _HIGH / 2, width, _HIGH)
        for at in choice
    ]
    covered = [box.count_overlaps(taken) + 9 * (box.x0 < room.x0 or box.x1 > room.x1) for box in boxes]
    best = covered.index(min(covered))
    return choice[best], boxes[best]
