"""Loader processes that cannot pass their batches on."""

import os
from collections import namedtuple

import pytest

from ofqctl.data import DataSpec, image_loader, open_data, workers
from ofqctl.errors import DataError

Disk = namedtuple("Disk", "f_bavail f_frsize")


@pytest.fixture
def data(make_folder):
    return open_data(DataSpec(str(make_folder({"cat": 6, "dog": 6}))))


def with_free(monkeypatch, count):
    monkeypatch.setattr(workers.os, "statvfs", lambda _path: Disk(count, 1))


def test_too_little_shared_memory_is_told_before_a_process_starts(data, config, monkeypatch):
    image = 3 * 16 * 16 * 4
    needed = (2 * 2 + 1) * 4 * image
    with_free(monkeypatch, needed - 1)
    told = r"--workers 2: their batches need 0.1 MB of shared memory at a time; /dev/shm has 0.1 MB free"
    with pytest.raises(DataError, match=told) as error:
        list(image_loader(data, config, batch_size=4, workers=2))
    assert "--workers 0" in error.value.hint
    assert "--shm-size" in error.value.hint
    with_free(monkeypatch, needed)
    assert len(list(image_loader(data, config, batch_size=4, workers=2))) == 3


def test_without_processes_no_shared_memory_is_needed(data, config, monkeypatch):
    with_free(monkeypatch, 0)
    assert len(list(image_loader(data, config, batch_size=4))) == 3


class _Stuck(list):
    """Items of which one process dies at the first, or never answers."""

    def __init__(self, act):
        super().__init__(range(4))
        self.act = act

    def __getitem__(self, index):
        self.act()
        return super().__getitem__(index)


def test_a_killed_process_is_an_error_with_its_remedy():
    loaded = workers.load_batches(_Stuck(lambda: os._exit(9)), workers=1, batch_bytes=0)
    with pytest.raises(DataError, match=r"--workers 1: DataLoader worker \(pid"):
        list(loaded)


def test_a_process_that_does_not_answer_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 1)
    import time

    loaded = workers.load_batches(_Stuck(lambda: time.sleep(2)), workers=1, batch_bytes=0)
    with pytest.raises(DataError, match="--workers 1: DataLoader timed out after 1 seconds"):
        list(loaded)


def test_an_error_of_the_data_itself_is_not_taken_for_one_of_the_processes():
    def fail():
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        list(workers.load_batches(_Stuck(fail), workers=0, batch_bytes=0))
