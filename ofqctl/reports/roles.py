"""Which layers of each role are drawn, and how."""

from ofqctl.oscillation import Role
from ofqctl.results.analyze_oscillation import Report

DRAWN_BITS = 4  # with more bits there are too many thresholds to draw, and codes always move more
COLOURS: dict[Role, tuple[str, bool]] = {  # colour, and whether dashed
    "q": ("c1", False),
    "k": ("c2", False),
    "v": ("c3", False),
    "qk": ("c1", False),
    "proj": ("c4", False),
    "fc1": ("c5", False),
    "fc2": ("c6", False),
    "patch": ("c8", True),
    "head": ("c7", True),
    "other": ("c8", False),
}


def drawn(report: Report) -> list[Role]:
    """Roles with layers of few bits; all roles if there are none."""
    low = [layer.role for layer in report.layers if layer.bits <= DRAWN_BITS]
    return list(dict.fromkeys(low or [layer.role for layer in report.layers]))
