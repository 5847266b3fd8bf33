"""Images in one folder, whose classes a file of labels names."""

import pytest

from ofqctl.data import DataSpec, LabelSpace, open_data
from ofqctl.data.imagenet import imagenet_ids
from ofqctl.errors import DataError

IDS = imagenet_ids(1000)


@pytest.fixture
def flat(make_folder, tmp_path):
    """Three images in one folder, 000.png to 002.png, opened with the text of a file of labels."""
    root = make_folder({".": 3})

    def open_with(text, classes=1000):
        path = tmp_path / "labels.txt"
        path.write_text(text)
        return open_data(DataSpec(str(root), class_map=path), LabelSpace(classes))

    return open_with


@pytest.mark.parametrize(
    "text",
    [
        "000.png 65\n001.png 970\n002.png 65\n",
        "\ufeff002.png 65\r\n001.png 970\r\n000.png 65\r\n",
        f"ImageId,PredictionString\n000,{IDS[65]} 1 2 3 4\n001,{IDS[970]} 5 6 {IDS[970]} 1 1\n002,{IDS[65]} 9\n",
        f"val/000.png {IDS[65]}\nval/001.png {IDS[970]}\nval/002.png {IDS[65]}\n",
        f"{IDS[65]}\n{IDS[970]}\n{IDS[65]}\n",
    ],
    ids=["val.txt", "another order", "LOC_val_solution.csv", "WordNet ids", "WordNet ids alone"],
)
def test_every_form_gives_the_same_labels(flat, text):
    data = flat(text)
    assert [label for _, label in data] == [65, 970, 65]
    assert data.class_count == 2
    assert data.notes[0].endswith("labels.txt")


def test_an_image_that_is_not_named_has_no_label_and_is_skipped(flat, config):
    from ofqctl.data import image_loader

    loader = image_loader(flat("000.png 1\n002.png 0\n", classes=2), config, batch_size=3)
    ((_, labels),) = loader
    assert labels.tolist() == [1, 0]
    assert [skipped.reason for skipped in loader.skipped] == ["has no label"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000.png cat\n", "'cat' is neither a label nor a WordNet id"),
        ("000.png 1000\n", "'1000' the label 1000; a model with 1000 classes has 0..999"),
    ],
)
def test_a_fault_is_named(flat, text, message):
    with pytest.raises(DataError, match=message):
        flat(text)


@pytest.mark.parametrize("text", ["one.png 1\n", "1\n2\n1\n", "\n".join(IDS[:3]), f"{IDS[0]}\n{IDS[0]}\n"])
def test_a_file_that_names_no_image_leaves_them_unlabelled(flat, text):
    data = flat(text)
    assert not data.labelled
    assert data.notes[-1].startswith("--class-map has no effect")


def test_what_was_left_out_of_the_folder_is_still_told(make_folder, tmp_path):
    root = make_folder({".": 3})
    (root / "readme.txt").write_text("read me")
    (tmp_path / "labels.txt").write_text("000.png 65\n001.png 970\n002.png 65\n")
    data = open_data(DataSpec(str(root), class_map=tmp_path / "labels.txt"), LabelSpace(1000))
    assert any("readme.txt" in note or ".txt" in note for note in data.notes[:-1])
    assert not any("unlabelled" in note for note in data.notes)
