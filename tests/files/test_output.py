"""Outputs: nothing of others is replaced, readers find the old or the new state, and two writers do not meet."""

import json
import os
import stat
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ofqctl.errors import ArtifactError, disk_fault
from ofqctl.files import located, output_directory, output_file, replaced_file, replaced_files
from ofqctl.files.staging import PREFIX

CONFIG = json.dumps({"quantization_config": {"quant_method": "ofqctl"}})


def written(directory, **files):
    """Files by name, with ``_`` for the dot before the ending."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_text(content)
    return directory


def read(directory):
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


def save(directory, removed=(), **files):
    with replaced_files(directory, removed) as fresh:
        written(fresh, **files)


@pytest.fixture
def run(tmp_path):
    return written(tmp_path / "run", config_json=CONFIG, model_safetensors="old", thesis_txt="mine")


@contextmanager
def elsewhere(function):
    """Another process, in which ``function(ready, go)`` has called ``ready`` and does not go on within the block."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            function(lambda: os.write(ready[1], b"."), lambda: os.read(go[0], 1))
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.write(go[1], b".")
        os.waitpid(child, 0)
        for handle in (*ready, *go):
            os.close(handle)


def claimed(context):
    def hold(ready, go):
        with context():
            ready()
            go()

    return elsewhere(hold)


@pytest.mark.parametrize(
    "config",
    [
        '{"architectures": ["ViTForImageClassification"]}',
        '{"quantization_config": {"quant_method": "gptq"}}',
        '{"quantization_config": {"quant_method": "compressed-tensors"}}',
        '["config"]',
        "{",
    ],
)
def test_a_folder_with_the_config_of_another_program_is_never_overwritten(tmp_path, config):
    model = written(tmp_path / "model", config_json=config, model_safetensors="theirs", thesis_txt="mine")
    before = read(model)
    with (
        pytest.raises(ArtifactError, match="not a run directory"),
        output_directory(tmp_path / "model", overwrite=True),
    ):
        pass
    with pytest.raises(ArtifactError, match="not a run directory"):
        save(tmp_path / "model", model_safetensors="new")
    assert read(tmp_path / "model") == before


def test_a_folder_with_a_last_pt_of_another_program_is_never_overwritten(tmp_path):
    torch.save({"epoch": 3, "model": {}}, written(tmp_path / "yolo") / "last.pt")
    with pytest.raises(ArtifactError, match="not a run directory"), output_directory(tmp_path / "yolo", overwrite=True):
        pass


def test_an_existing_run_needs_overwrite(run):
    with pytest.raises(ArtifactError, match="already exists"), output_directory(run, overwrite=False):
        pass
    with output_directory(run, overwrite=True):
        pass
    assert read(run)["model.safetensors"] == "old"


def test_a_file_is_no_output_directory(run):
    with pytest.raises(ArtifactError, match="not a folder"), output_directory(run / "thesis.txt", overwrite=True):
        pass


@pytest.mark.parametrize("name", ["lost+found", "logs"])
def test_a_new_disk_or_the_logs_of_a_training_that_failed_are_an_empty_directory(tmp_path, name):
    written(tmp_path / "out" / name)
    with output_directory(tmp_path / "out", overwrite=False):
        save(tmp_path / "out", config_json=CONFIG)


def test_a_run_is_not_made_in_the_directory_of_what_it_is_made_from(run):
    with output_directory(run, overwrite=True, sources=[run / "thesis.txt"]):  # which stays
        pass
    for source in (run, run / "model.safetensors"):
        with (
            pytest.raises(ArtifactError, match="starts from this run"),
            output_directory(run, overwrite=True, sources=[source]),
        ):
            pass


def test_what_others_wrote_stays_and_what_a_new_run_lacks_goes(run):
    written(run, last_pt="state", model_onnx="exported")
    save(run, ["last.pt", "config.json"], model_safetensors="new", config_json=CONFIG)
    expected = {"config.json": CONFIG, "model.safetensors": "new", "model.onnx": "exported", "thesis.txt": "mine"}
    assert read(run) == expected


def test_a_directory_is_made_and_removed_if_nothing_was_written(tmp_path):
    with output_directory(tmp_path / "a" / "b", overwrite=False):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), replaced_files(tmp_path / "run") as fresh:
        written(fresh, a_txt="a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_directory_stays_a_link(tmp_path, exists):
    target = tmp_path / "disk" / "run"
    if exists:
        target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    with output_directory(tmp_path / "link", overwrite=False):
        save(tmp_path / "link", config_json=CONFIG)
    assert (tmp_path / "link").is_symlink()
    assert read(target) == {"config.json": CONFIG}


def test_the_working_directory_gets_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with output_directory(Path(), overwrite=False):
        save(Path(), config_json=CONFIG)
    assert read(tmp_path) == {"config.json": CONFIG}


def test_a_link_in_a_run_is_followed(run, tmp_path):
    state = written(tmp_path / "scratch", state_pt="old") / "state.pt"
    (run / "last.pt").symlink_to(state)
    with replaced_file(run / "last.pt") as fresh:
        fresh.write_text("new")
    save(run, last_pt="newer")
    assert (run / "last.pt").is_symlink()
    assert state.read_text() == "newer"


@pytest.mark.parametrize("length", [245, 255])
def test_every_name_that_the_disk_takes_is_a_name(tmp_path, length):
    with output_directory(tmp_path / ("x" * length), overwrite=False):
        save(tmp_path / ("x" * length), config_json=CONFIG)
    with output_file(tmp_path / ("y" * length)), replaced_file(tmp_path / ("y" * length)) as fresh:
        fresh.write_text("new")
    assert {len(path.name) for path in tmp_path.iterdir()} == {length}


def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path):
    for claim in (output_directory(tmp_path / ("x" * 256), overwrite=False), output_file(tmp_path / ("x" * 256))):
        with pytest.raises(ArtifactError, match="File name too long"), claim:
            pass


def test_a_folder_that_takes_no_files_is_told_before_the_work(tmp_path, monkeypatch):
    def refused(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)  # root may write everywhere
    for claim in (output_directory(tmp_path / "a", overwrite=False), output_file(tmp_path / "b")):
        with pytest.raises(ArtifactError, match="cannot be written: Permission denied"), claim:
            pass


def test_a_second_process_is_refused_and_may_write_when_the_first_has_ended(tmp_path):
    claims = [lambda: output_directory(tmp_path / "run", overwrite=True), lambda: output_file(tmp_path / "page.html")]
    for claim in claims:
        with claimed(claim), pytest.raises(ArtifactError, match="another process is writing it"), claim():
            pass
        with claim():
            pass


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    def idle(ready, go):
        ready()
        go()

    with output_directory(tmp_path / "run", overwrite=True):
        child = elsewhere(idle)
        child.__enter__()
    with output_directory(tmp_path / "run", overwrite=True):
        pass
    child.__exit__(None, None, None)


def test_what_a_killed_process_left_goes_at_the_next_save_and_what_a_live_one_writes_stays(tmp_path):
    def killed(_ready, _go):
        with replaced_file(tmp_path / "killed.html") as fresh:
            fresh.write_text("half")
            os._exit(9)

    child = os.fork()
    if child == 0:
        killed(None, None)
    os.waitpid(child, 0)
    [left] = tmp_path.iterdir()
    (left / "killed.html").touch()
    with claimed(lambda: output_file(tmp_path / "live.html")):
        with replaced_file(tmp_path / "page.html") as fresh:
            fresh.write_text("whole")
        names = {path.name for path in tmp_path.iterdir()}
        assert "page.html" in names and len(names) == 2
    assert read(tmp_path) == {"page.html": "whole"}


def test_two_writers_do_not_mix_their_files_where_the_disk_knows_no_locks(tmp_path, monkeypatch):
    def unknown(_handle, _operation):
        raise OSError(38, "Function not implemented")

    def slow(ready, go):
        with replaced_files(tmp_path / "run") as fresh:
            written(fresh, config_json=CONFIG, a_txt="slow")
            ready()
            go()

    monkeypatch.setattr("fcntl.flock", unknown)
    with elsewhere(slow):
        save(tmp_path / "run", config_json=CONFIG, b_txt="quick")
    assert read(tmp_path / "run") == {"config.json": CONFIG, "a.txt": "slow", "b.txt": "quick"}


OPERATIONS = [
    *((os, name) for name in ("fsync", "open", "unlink", "rmdir")),
    *((Path, name) for name in ("replace", "mkdir", "unlink", "rmdir")),
]


def test_a_process_killed_at_any_operation_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch):
    new = {"config.json": CONFIG + " ", "model.safetensors": "new", "summary.csv": "rows", "thesis.txt": "mine"}
    seen, ended = set(), 0
    for number in range(1, 100):
        old = written(
            tmp_path / str(number), config_json=CONFIG, model_safetensors="old", last_pt="s", thesis_txt="mine"
        )
        before = read(old)
        child = os.fork()
        if child == 0:
            _killed_at(number, monkeypatch)
            save(old, ["last.pt"], config_json=CONFIG + " ", model_safetensors="new", summary_csv="rows")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            ended = number
            break
        found = {name: located(old, name) for name in before | new}
        state = {name: path.read_text() for name, path in found.items() if path.exists()}
        assert state in (before, new), number
        seen.add(state == new)
        save(old, results_json="r")
        assert read(old) == state | {"results.json": "r"}, number
    assert seen == {True, False}
    assert ended > 20


def _killed_at(number, monkeypatch):
    """Ends this process as a kill does, just before the operation of this number."""
    left = [number]

    def counted(operation):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return operation(*args, **kwargs)

        return call

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_get_the_umask_of_the_user(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replaced_files(tmp_path / "run") as fresh:
            written(fresh, config_json=CONFIG)
            (fresh / "config.json").chmod(0o600)  # as the writers of some formats do
        with replaced_file(tmp_path / "a.html") as page:
            page.write_text("page")
    finally:
        os.umask(before)
    for path in (tmp_path / "run" / "config.json", tmp_path / "a.html"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o777 & ~mask


def test_a_pipe_and_a_device_are_written_in_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "null"):
        with output_file(path), replaced_file(path) as fresh:
            fresh.write_text("page")
    reader.join()
    assert got == ["page"]
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "null"}


def test_a_full_device_is_told_and_stays_a_device():
    full = Path("/dev/full")
    with output_file(full), pytest.raises(ArtifactError, match="No space left"), replaced_file(full) as fresh:
        fresh.write_text("page")
    assert stat.S_ISCHR(full.stat().st_mode)


def test_an_open_file_of_the_process_is_written_in_place(tmp_path):
    with (tmp_path / "page.html").open("w+") as page:
        path = Path(f"/dev/fd/{page.fileno()}")
        with output_file(path), replaced_file(path) as fresh:
            fresh.write_text("page")
        assert page.read() == "page"


def test_a_linked_file_is_written_where_it_lies(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    with output_file(tmp_path / "link.html"), replaced_file(tmp_path / "link.html") as fresh:
        fresh.write_text("new")
    assert (tmp_path / "real.html").read_text() == "new"
    assert (tmp_path / "link.html").is_symlink()


def test_a_file_on_another_disk_or_on_a_mount_point_is_written_in_place(tmp_path, monkeypatch):
    replace, page = Path.replace, tmp_path / "a.html"

    def busy(self, target):
        if target == page:
            raise OSError(16, "Device or resource busy")
        return replace(self, target)

    page.write_text("a longer old page")
    number = page.stat().st_ino
    monkeypatch.setattr(Path, "replace", busy)
    with replaced_file(page) as fresh:
        fresh.write_text("new")
    assert read(tmp_path) == {"a.html": "new"}
    assert page.stat().st_ino == number


def test_a_file_that_somebody_else_writes_meanwhile_is_left(tmp_path):
    path = tmp_path / "a.html"
    for existed in (False, True):
        with output_file(path, overwrite=True), pytest.raises(ArtifactError, match="another program has written it"):
            path.write_text(f"theirs {existed}")
            with replaced_file(path) as fresh:
                fresh.write_text("ours")
        assert path.read_text() == f"theirs {existed}"


def test_files_of_a_run_and_files_that_are_read_are_no_output(run, tmp_path):
    for path, told in ((run / "config.json", "a file of the run"), (run / "thesis.txt", "is read by this command")):
        with pytest.raises(ArtifactError, match=told), output_file(path, sources=[run / "thesis.txt"]):
            pass
    with pytest.raises(ArtifactError, match="is a folder"), output_file(run):
        pass
    with pytest.raises(ArtifactError, match="cannot be written"), output_file(tmp_path / "nowhere" / "a.html"):
        pass


def test_a_failed_write_of_any_library_is_an_error_that_names_the_output(tmp_path):
    failures = [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        OSError("12 requested and 0 written"),
    ]
    for failure in failures:
        with pytest.raises(ArtifactError, match="npy: cannot be written"), replaced_file(tmp_path / "a.npy"):
            raise failure
        assert disk_fault(failure) or failure.args[0] == "12 requested and 0 written"
    with pytest.raises(RuntimeError, match="a bug"), replaced_file(tmp_path / "a.npy"):
        raise RuntimeError("a bug")
    assert list(tmp_path.glob(f"{PREFIX}*")) == []
