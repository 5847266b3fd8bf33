"""The page of ``study report``."""

from ofqctl.results.study import StudyReport


def study_page(report: StudyReport) -> str:
    """The HTML document."""
    raise NotImplementedError
