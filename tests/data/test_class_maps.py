import json

import pytest

from ofqctl.data import DataSpec, LabelSpace, open_data
from ofqctl.errors import DataError


@pytest.fixture
def labels_by(make_folder, tmp_path):
    """Labels of the folders cat, dog and great tit under a class map with that text."""
    root = make_folder({"cat": 1, "dog": 1, "great tit": 1})

    def open_with(text, labels=None):
        path = tmp_path / "classes.txt"
        path.write_text(text)
        data = open_data(DataSpec(str(root), class_map=path), labels)
        return [label for _, label in data]

    return open_with


@pytest.mark.parametrize(
    "text",
    [
        "dog\ngreat tit\ncat\n",
        "cat 2\ngreat tit\t1\ndog 0\n",
        json.dumps({"great tit": 1, "cat": 2, "dog": 0}),
        json.dumps(["dog", "great tit", "cat"]),
        "\ufeffdog\r\ngreat tit\r\ncat\r\n",
        "\ufeff" + json.dumps(["dog", "great tit", "cat"]),
        "cat,2\ngreat tit,1\ndog,0\n",
        'class,label\ncat,2\n"great tit",1\ndog,0\n',
        "index name\n0 dog\n2 cat\n1 great tit\n",
        "0: dog\n1: great tit\n2: cat\n",
        json.dumps({"0": "dog", "1": "great tit", "2": "cat"}),
        json.dumps({"dog": "0", "great tit": "1", "cat": "2"}),
        json.dumps({"model_type": "vit", "id2label": {"0": "dog", "1": "great tit", "2": "cat"}}),
        json.dumps({"label2id": {"dog": 0, "great tit": 1, "cat": 2}}),
        json.dumps({"0": ["n01", "dog"], "1": ["n02", "great tit"], "2": ["n03", "cat"]}),
    ],
    ids=(
        *("lines", "numbered lines", "json object", "json list", "lines of Windows", "json of Windows", "csv"),
        *("csv with a header", "index first", "index and colon", "id2label", "label2id as text", "config.json"),
        *("label2id", "Keras"),
    ),
)
def test_every_format_gives_the_same_labels(labels_by, text):
    assert labels_by(text) == [2, 0, 1]
    assert labels_by(text, LabelSpace(3)) == [2, 0, 1]


def test_it_wins_over_the_models_names(labels_by):
    names = ("cat", "dog", "great tit")
    assert labels_by("cat 1\ndog 2\ngreat tit 0", LabelSpace(3, names)) == [1, 2, 0]


def test_numbered_lines_may_name_a_part_of_the_models_classes(labels_by):
    assert labels_by("cat 281\ndog 200\ngreat tit 19", LabelSpace(1000)) == [281, 200, 19]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("cat\n\ndog", "line 2 of the class map is empty"),
        ("cat\ndog\ncat", "names 'cat' more than once"),
        ("cat 0\ndog -1", "'dog' -1; labels start at 0"),
        ("cat\ndog", "lacks 'great tit' of the folders"),
        ("cat 0\ndog 1\ngreat tit 3", "'great tit' the label 3; a model with 3 classes has 0..2"),
        ("cat\ndog\ngreat tit\nowl", "lists 4 names in label order, the model has 3 classes"),
        ('{"cat": 0, ', "not valid JSON"),
        ('{"cat": "first"}', "'cat': 'first', which is not an integer"),
        ('{"cat": 0, "cat": 1}', "names 'cat' more than once"),
        ("[1, 2]", "something other than names"),
    ],
)
def test_a_fault_is_named(labels_by, text, message):
    with pytest.raises(DataError, match=message):
        labels_by(text, LabelSpace(3))


def test_a_missing_or_binary_file_is_an_error(make_folder, tmp_path):
    root = str(make_folder({"cat": 1}))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_data(DataSpec(root, class_map=tmp_path / "none.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        open_data(DataSpec(root, class_map=tmp_path / "binary"))


def test_it_has_no_effect_on_unlabelled_images(make_folder, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\n")
    data = open_data(DataSpec(str(make_folder({".": 1})), class_map=path))
    assert data.notes[-1].startswith("--class-map has no effect")


def test_lines_of_wordnet_ids_and_words_are_in_label_order(make_folder, tmp_path):
    path = tmp_path / "synset_words.txt"
    path.write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca tinca\n")
    data = open_data(DataSpec(str(make_folder({"n01440764": 1, "n01443537": 1})), class_map=path), LabelSpace(2))
    assert [label for _, label in data] == [1, 0]


@pytest.mark.parametrize(
    "names", [["Audi S4 2012", "Audi S4 2007", "Geo Metro 1993"], ["2 cents", "1 cent", "0 cents"]]
)
def test_names_with_a_number_in_them_are_whole_names_if_the_data_calls_them_so(make_folder, tmp_path, names):
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(names))
    data = open_data(DataSpec(str(make_folder(dict.fromkeys(names, 1))), class_map=path), LabelSpace(3))
    assert [label for _, label in data] == [names.index(name) for name in sorted(names)]


def test_deeply_nested_json_is_a_fault_of_the_file(labels_by):
    with pytest.raises(DataError, match="not valid JSON"):
        labels_by("[" * 100_000)
