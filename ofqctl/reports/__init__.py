"""Pages that a person looks at: one HTML file each, with plots in it and nothing to load."""

from ofqctl.reports.comparison import comparison_page
from ofqctl.reports.oscillation import oscillation_page

__all__ = ["comparison_page", "oscillation_page"]
