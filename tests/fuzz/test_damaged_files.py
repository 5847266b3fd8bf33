"""Damaged files of every kind, through the commands that read them."""

import pytest

from .harness import fuzz


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_gives_what_the_undamaged_one_gives():
    report = fuzz(500, seed=0)
    print(report)
    assert not report.faults, str(report)
