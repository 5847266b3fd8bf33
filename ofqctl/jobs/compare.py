"""Put runs of any command side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofqctl.artifact.atomic import replaced_file
from ofqctl.diagnosis.comparison import Comparison, compared


@dataclass(frozen=True)
class CompareRequest:
    """Which runs.

    Attributes:
        runs: Run directories.
        html: Where to write the page for people, or None.
    """

    runs: Sequence[Path]
    html: Path | None = None


def compare(request: CompareRequest) -> Comparison:
    """One table over the runs; written as a page too if that is asked for.

    Raises:
        ArtifactError: A path is no run directory, or the page cannot be written.
    """
    comparison = compared(request.runs)
    if request.html is not None:
        from ofqctl.reports import comparison_page

        with replaced_file(request.html) as fresh:
            fresh.write_text(comparison_page(comparison), encoding="utf-8")
    return comparison
