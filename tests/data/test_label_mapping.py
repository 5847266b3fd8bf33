import pytest
from timm.data import ImageNetInfo

from ofqctl.data import DataSpec, LabelSpace, label_names, open_data
from ofqctl.errors import DataError

IMAGENET = tuple(ImageNetInfo("imagenet-1k").label_names())


def labels_of(data):
    return [label for _, label in data]


def test_some_imagenet_folders_keep_their_imagenet_labels(make_folder):
    root = make_folder({IMAGENET[217]: 1, IMAGENET[0]: 1, IMAGENET[999]: 1})
    data = open_data(DataSpec(str(root)), LabelSpace(1000))
    assert sorted(labels_of(data)) == [0, 217, 999]
    assert data.mapping == "3 WordNet-id folders mapped onto the 1000 ImageNet-1k classes"
    assert data.label_space.names == IMAGENET
    assert data.notes == ()


def test_imagenet_folders_map_onto_the_variant_the_model_has(make_folder):
    ids = ImageNetInfo("imagenet-12k").label_names()
    data = open_data(DataSpec(str(make_folder({ids[5000]: 1}))), LabelSpace(11821))
    assert labels_of(data) == [5000]
    assert "ImageNet-12k" in data.mapping


def test_imagenet_folders_alone_make_their_own_label_space(make_folder):
    data = open_data(DataSpec(str(make_folder({IMAGENET[5]: 1, IMAGENET[3]: 1}))))
    assert data.label_space == LabelSpace(2, tuple(sorted((IMAGENET[5], IMAGENET[3]))))


def test_the_models_own_names_decide_before_anything_else(make_folder):
    names = tuple(reversed(IMAGENET[:3]))
    data = open_data(DataSpec(str(make_folder(dict.fromkeys(IMAGENET[:2], 1)))), LabelSpace(3, names))
    assert labels_of(data) == [2, 1]
    assert data.mapping == "2 folders mapped by name onto the model's 3 classes"


def test_folders_that_match_in_number_only_are_numbered_with_a_note(make_folder):
    data = open_data(DataSpec(str(make_folder(dict.fromkeys(IMAGENET[:3], 1)))), LabelSpace(3))
    assert labels_of(data) == [0, 1, 2]
    assert "the model's class names are unknown" in data.notes[0]


@pytest.mark.parametrize("count", [2, 4])
def test_a_class_count_that_does_not_fit_is_an_error(make_folder, count):
    root = make_folder({f"class-{number}": 1 for number in range(count)})
    with pytest.raises(DataError, match=f"{count} folders do not fit a model with 3 classes") as caught:
        open_data(DataSpec(str(root)), LabelSpace(3))
    assert "--class-map" in caught.value.hint
    assert f"--num-classes {count}" in caught.value.hint


def test_a_folder_outside_the_models_imagenet_variant_is_named(make_folder):
    with pytest.raises(DataError, match="not all are ImageNet-1k classes: 'n00004475'"):
        open_data(DataSpec(str(make_folder({IMAGENET[0]: 1, "n00004475": 1}))), LabelSpace(1000))


def test_names_that_overlap_the_models_only_partly_are_an_error(make_folder):
    with pytest.raises(DataError, match="the model does not know 'car'"):
        open_data(DataSpec(str(make_folder({"cat": 1, "car": 1}))), LabelSpace(2, ("cat", "dog")))


def test_a_label_space_has_as_many_names_as_classes():
    with pytest.raises(ValueError, match="1 names given for 2 classes"):
        LabelSpace(2, ("cat",))


def test_label_names_are_words():
    assert label_names(LabelSpace(1000))[0] == "tench, Tinca tinca"
    assert label_names(LabelSpace(2, (IMAGENET[1], "my cat"))) == ("goldfish, Carassius auratus", "my cat")
    assert label_names(LabelSpace(2)) == ("class 0", "class 1")
    assert len(label_names(LabelSpace(21843))) == 21843
