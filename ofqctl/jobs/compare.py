"""Compare runs of any command side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofqctl.diagnosis.comparison import compared
from ofqctl.files import output_file, replaced_file
from ofqctl.results.compare import Comparison


@dataclass(frozen=True)
class CompareRequest:
    """A request to compare runs.

    Attributes:
        runs: Run directories.
        html: Path of the HTML page to write, or None.
    """

    runs: Sequence[Path]
    html: Path | None = None


def compare(request: CompareRequest) -> Comparison:
    """Compare the runs, and write an HTML page if requested.

    Raises:
        ArtifactError: A path is not a run directory, or the page cannot be written.
    """
    with output_file(request.html, sources=request.runs):
        comparison = compared(request.runs)
        if request.html is not None:
            from ofqctl.reports import comparison_page

            with replaced_file(request.html) as fresh:
                fresh.write_text(comparison_page(comparison), encoding="utf-8", errors="backslashreplace")
    return comparison
