"""The result of ``ofqctl import``."""

from typing import Literal

from ofqctl.results.run import RunResult


class ImportResult(RunResult):
    """An imported checkpoint.

    Attributes:
        evaluation: None: nothing is measured.
    """

    command: Literal["import"] = "import"
    evaluation: None = None
