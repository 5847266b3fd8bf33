import os
from pathlib import Path

import pytest
from PIL import Image

from ofqctl.data import DataSpec, LabelSpace, open_data
from ofqctl.errors import DataError


def test_class_folders_are_numbered_in_sorted_order(make_folder):
    data = open_data(DataSpec(str(make_folder({"dog": 1, "cat": 2, "owl": 1}))))
    assert [label for _, label in data] == [0, 0, 1, 2]
    assert data.label_space == LabelSpace(3, ("cat", "dog", "owl"))
    assert (data.class_count, data.image_count, len(data), data.labelled) == (3, 4, 4, True)
    assert data.mapping == "3 folders numbered 0..2, sorted by name"


def test_images_are_found_nested_and_whatever_the_case_of_their_extension(make_folder):
    root = make_folder({"cat": 1, "dog/old/brown": 2})
    (root / "cat" / "000.png").rename(root / "cat" / "000.PNG")
    make_folder({"cat": 1}, suffix=".JPEG")
    (root / "cat" / "notes.txt").write_text("not an image")
    assert [label for _, label in open_data(DataSpec(str(root)))] == [0, 0, 1, 1]


def test_hidden_files_and_folders_are_not_classes(make_folder):
    root = make_folder({"cat": 1, "dog": 1, ".cache": 1})
    (root / "cat" / "._000.png").write_bytes(b"resource fork")
    assert len(open_data(DataSpec(str(root)), LabelSpace(2))) == 2


def test_every_format_that_pillow_reads_is_an_image(make_folder):
    for suffix in (".gif", ".pgm", ".jfif", ".jp2", ".tga", ".bmp"):
        if Image.registered_extensions().get(suffix) in Image.OPEN:
            root = make_folder({"cat": 1, "dog": 1}, suffix=suffix)
    data = open_data(DataSpec(str(root)))
    assert len(data) == sum(1 for path in root.rglob("*") if path.is_file()) >= 8
    assert data.notes == ()
    assert all(image.mode == "RGB" for image, _ in data)


def test_files_that_are_no_images_are_counted(make_folder):
    root = make_folder({"cat": 1, "dog": 1})
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes.txt", "dog/Thumbs.db", "dog/.DS_Store", "dog/._000.png"):
        (root / name).write_bytes(b"x")
    (note,) = open_data(DataSpec(str(root))).notes
    assert note.startswith(f"3 files in {root} were left out")
    assert "2 with extension .heic, 1 with extension .txt" in note


def test_hidden_images_are_counted(make_folder):
    root = make_folder({"cat": 1, "dog": 1})
    (root / "cat" / "000.png").rename(root / "cat" / ".000.png")
    make_folder({"cat": 1})
    assert open_data(DataSpec(str(root))).notes == (f"1 hidden images in {root} were left out",)


def test_links_in_a_circle_are_followed_once(make_folder):
    root = make_folder({"cat": 2, "dog": 1})
    (root / "cat" / "self").symlink_to(".")
    (root / "dog" / "up").symlink_to(root / "dog")
    data = open_data(DataSpec(str(root)))
    assert len(data) == 3
    assert data.notes == (f"2 links in {root} lead to folders read already and were left out",)


def test_what_systems_leave_behind_is_no_class(make_folder):
    data = open_data(DataSpec(str(make_folder({"cat": 1, "dog": 1, "__MACOSX": 0, "__MACOSX/cat": 1}))))
    assert data.label_space.names == ("cat", "dog")


def test_images_without_class_folders_are_unlabelled(make_folder):
    data = open_data(DataSpec(str(make_folder({".": 3}))), LabelSpace(10))
    assert not data.labelled
    assert [label for _, label in data] == [-1, -1, -1]
    assert data.label_space == LabelSpace(10)
    assert "unlabelled" in data.notes[0]


def test_images_beside_class_folders_are_left_out_and_noted(make_folder):
    data = open_data(DataSpec(str(make_folder({"cat": 1, "dog": 1, ".": 2}))))
    assert len(data) == 2
    assert data.notes[0].startswith("2 images beside the class folders")


@pytest.mark.parametrize("asked", ["val", "validation"])
def test_a_split_is_entered_by_its_name_or_its_alias(make_folder, asked):
    root = make_folder({"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    data = open_data(DataSpec(str(root), split=asked))
    assert len(data) == 2
    assert data.name == str(root / "val")


def test_splits_are_never_taken_for_classes(make_folder):
    root = make_folder({"train/cat": 1, "val/cat": 1})
    with pytest.raises(DataError, match="holds the splits train, val") as caught:
        open_data(DataSpec(str(root)), LabelSpace(2))
    assert f"--data {root / 'val'}" in caught.value.hint


def test_the_only_split_is_taken_and_noted(make_folder):
    data = open_data(DataSpec(str(make_folder({"val/cat": 1, "val/dog": 1}))))
    assert data.class_count == 2
    assert "'val' was chosen" in data.notes[0]


@pytest.mark.parametrize("purpose", ["train", "calibrate"])
def test_training_and_calibration_take_the_training_split(make_folder, purpose):
    root = make_folder({"train/cat": 2, "train/dog": 1, "val/cat": 1, "val/dog": 1})
    data = open_data(DataSpec(str(root)), purpose=purpose)
    assert (data.name, len(data), data.notes) == (str(root / "train"), 3, ())


@pytest.mark.parametrize("alone", ["val", "test"])
def test_training_never_takes_a_split_for_measuring_of_itself(make_folder, alone):
    with pytest.raises(DataError, match=f"none is for training; available are {alone}"):
        open_data(DataSpec(str(make_folder({f"{alone}/cat": 1, f"{alone}/dog": 1}))), purpose="train")


@pytest.mark.parametrize("purpose", ["train", "evaluate", "calibrate"])
def test_a_class_called_train_is_a_class(make_folder, purpose):
    data = open_data(DataSpec(str(make_folder({"aeroplane": 1, "bus": 1, "train": 1}))), purpose=purpose)
    assert len(data) == 3


def test_classes_called_like_splits_are_classes_if_all_classes_hold_folders(make_folder):
    data = open_data(DataSpec(str(make_folder({"bus/red": 1, "train/old": 1}))))
    assert data.label_space.names == ("bus", "train")


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_splits_beside_other_folders_are_known_by_their_class_folders(make_folder, splits):
    counts = {f"{split}/{name}": 1 for split in splits for name in ("cat", "dog")}
    root = make_folder(counts | {"annotations": 0})
    assert open_data(DataSpec(str(root)), purpose="train").name == str(root / "train")


def test_a_flat_calibration_folder_guesses_nothing(make_folder):
    data = open_data(DataSpec(str(make_folder({".": 3}))), purpose="calibrate")
    assert (data.labelled, data.notes) == (False, ())


def test_an_unknown_split_suggests_the_closest(make_folder):
    with pytest.raises(DataError, match="no split 'vall'; available are train, val") as caught:
        open_data(DataSpec(str(make_folder({"train/cat": 1, "val/cat": 1})), split="vall"))
    assert caught.value.hint == "did you mean 'val'?"


def test_a_split_is_refused_where_there_are_none(make_folder):
    with pytest.raises(DataError, match="has no splits"):
        open_data(DataSpec(str(make_folder({"cat": 1})), split="val"))


def test_a_class_without_images_is_named(make_folder):
    with pytest.raises(DataError, match="class folder 'dog' holds no images"):
        open_data(DataSpec(str(make_folder({"cat": 1, "dog": 0}))))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no images found; looked for jpg"):
        open_data(DataSpec(str(tmp_path)))


def test_a_missing_folder_suggests_its_closest_sibling(make_folder):
    root = make_folder({"cat": 1})
    with pytest.raises(DataError, match="no such folder") as caught:
        open_data(DataSpec(str(root.with_name("imges"))))
    assert caught.value.hint == "did you mean 'images'?"


def test_a_missing_folder_that_reads_like_a_hub_name_suggests_the_hub():
    with pytest.raises(DataError) as caught:
        open_data(DataSpec("someone/flowers"))
    assert "--data hfds/someone/flowers" in caught.value.hint


def test_a_file_is_not_data(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file"):
        open_data(DataSpec(str(tmp_path / "data.zip")))


def test_an_unreadable_class_folder_is_an_error(make_folder, monkeypatch):
    root = make_folder({"cat": 1, "dog": 1})
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="dog: the folder cannot be read: Permission denied"):
        open_data(DataSpec(str(root)))


def test_options_without_effect_are_noted(make_folder):
    data = open_data(DataSpec(str(make_folder({"cat": 1})), label_column="label", streaming=True))
    assert [note.split()[0] for note in data.notes] == ["--label-column", "--streaming"]


class TestIdentity:
    def test_is_that_of_a_copy_elsewhere(self, make_folder):
        counts = {"cat": 2, "dog": 1}
        one, other = (open_data(DataSpec(str(make_folder(counts, root=root)))) for root in ("here", "there"))
        assert one.identity == other.identity
        assert one.identity["classes"] == {"cat": 0, "dog": 1}

    @pytest.mark.parametrize("change", ["another name", "another folder", "one less"])
    def test_differs_with_the_images(self, make_folder, change):
        root = make_folder({"cat": 2, "dog": 2})
        before = open_data(DataSpec(str(root))).identity
        path = root / "cat" / "001.png"
        if change == "one less":
            path.unlink()
        else:
            path.rename(root / ("dog" if change == "another folder" else "cat") / "002.png")
        after = open_data(DataSpec(str(root))).identity
        assert after["digest"] != before["digest"]
        assert (after["images"] != before["images"]) == (change == "one less")
