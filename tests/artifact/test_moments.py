"""Commands that are killed, or whose disk is full, at random moments; `python -m tests.artifact.kill` does many."""

import pytest

from .commands import faulty
from .full_disk import apart
from .kill import kill


@pytest.mark.slow
def test_a_command_killed_at_any_moment_leaves_the_old_or_the_new_and_the_next_save_nothing_else(tmp_path):
    results = kill(10, 0, tmp_path)
    assert sum(sum(counts.values()) for counts in results.values()) == 10
    assert not faulty(results), results


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_the_previous_state(tmp_path):
    results = apart(6, 0, tmp_path)
    if results is None:
        pytest.skip("a disk can be mounted by root only")
    assert sum(sum(counts.values()) for counts in results.values()) == 6
    assert not faulty(results), results
