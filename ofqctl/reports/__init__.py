"""HTML reports: one self-contained file each, with plots."""

from ofqctl.reports.comparison import comparison_page
from ofqctl.reports.oscillation import oscillation_page

__all__ = ["comparison_page", "oscillation_page"]
