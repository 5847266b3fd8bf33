"""Parts of a split, written as `datasets` does: ``train[:80%]``, ``[80%:]``, ``val[-500:]``."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ofqctl.data.sources.source import Source
from ofqctl.errors import DataError

_BOUND = r"(-?\d+%?)?"
_PART = re.compile(rf"(?P<name>[^\[\]]*)\[(?P<first>{_BOUND}):(?P<last>{_BOUND})\]")


@dataclass(frozen=True)
class Part:
    """A part of a split.

    Attributes:
        first: Where it begins: a number of images, a share such as ``80%``, either from the end if it is negative, or
            empty for the start.
        last: Where it ends; empty for the end.
    """

    first: str
    last: str

    def __str__(self) -> str:
        return f"[{self.first}:{self.last}]"

    def places(self, count: int) -> range:
        """The places of its images among ``count``."""
        first, last = (_place(bound, count) for bound in (self.first, self.last))
        return range(*slice(first, last).indices(count))


def named_part(split: str | None) -> tuple[str | None, Part | None]:
    """The split that was named, and the part of it; None for what was not.

    Raises:
        DataError: What stands in brackets is no part.
    """
    if split is None or not {"[", "]"} & set(split):
        return split, None
    found = _PART.fullmatch(split)
    shares = [] if found is None else [bound for bound in (found["first"], found["last"]) if bound.endswith("%")]
    if found is None or any(abs(int(share[:-1])) > 100 for share in shares):
        raise DataError(
            f"split '{split}': not a part of a split", hint="such as 'train[:80%]', '[80%:]' or 'val[:500]'"
        )
    return found["name"] or None, Part(found["first"], found["last"])


def part_of(source: Source, part: Part) -> Source:
    """A part of an indexed source, which has the same share of every class, as near as whole images allow.

    Images are ordered by their place within their class, as a share of it, and the part is cut out of this order; so
    parts that do not overlap have no image in common, and parts that follow each other leave out none.

    Raises:
        DataError: There is no image in it.
    """
    assert isinstance(source.records, Sequence)
    classes = [record.class_name for record in source.records]
    sizes, seen = Counter(classes), Counter[str | None]()
    shares = []
    for name in classes:
        shares.append((seen[name] + 0.5) / sizes[name])
        seen[name] += 1
    order = sorted(range(len(shares)), key=shares.__getitem__)
    chosen = sorted(order[place] for place in part.places(len(order)))
    if not chosen:
        raise DataError(f"{source.name}: there is no image in the part {part} of its {len(order)}")
    records = [source.records[index] for index in chosen]
    occurring = {record.class_name for record in records if record.class_name is not None}
    return replace(source, records=records, class_count=source.class_count and len(occurring), part=str(part))


def _place(bound: str, count: int) -> int | None:
    if not bound:
        return None
    return round(count * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
