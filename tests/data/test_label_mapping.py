import pytest
from timm.data import ImageNetInfo

from ofqctl.data import DataSpec, LabelSpace, label_names, names_of, open_data
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


def test_folders_are_numbered_in_their_order_for_a_model_that_does_not_name_its_classes(make_folder):
    data = open_data(DataSpec(str(make_folder(dict.fromkeys(IMAGENET[:3], 1)))), LabelSpace(3))
    assert labels_of(data) == [0, 1, 2]
    assert data.mapping == "3 folders numbered 0..2, sorted by name; the model does not name its classes"
    assert data.notes == ()


class TestNamesThatAreNumbers:
    TWELVE = tuple(str(number) for number in range(12))

    def test_are_ordered_by_value(self, make_folder):
        data = open_data(DataSpec(str(make_folder(dict.fromkeys(self.TWELVE, 1)))))
        assert data.label_space.names == self.TWELVE
        assert data.mapping == "12 folders numbered 0..11, sorted by number"

    @pytest.mark.parametrize("digits", [1, 3])
    def test_are_labels_if_there_is_one_for_each(self, make_folder, digits):
        root = make_folder({f"{number:0{digits}}": 1 for number in range(12)})
        data = open_data(DataSpec(str(root)), LabelSpace(12))
        assert labels_of(data) == [int(folder.name) for folder in sorted(root.iterdir())]
        assert data.notes == ()

    def test_are_labels_of_an_imagenet_model(self, make_folder):
        root = make_folder({str(number): 1 for number in (0, 217, 999)})
        data = open_data(DataSpec(str(root)), LabelSpace(1000, IMAGENET))
        assert sorted(labels_of(data)) == [0, 217, 999]
        assert "number n is assumed to be label n" in data.notes[0]

    def test_of_fewer_classes_counted_anew_are_an_error(self, make_folder):
        with pytest.raises(DataError, match="3 folders do not fit a model with 1000 classes"):
            open_data(DataSpec(str(make_folder({"0": 1, "1": 1, "2": 1}))), LabelSpace(1000))

    def test_counted_from_one_are_a_guess(self, make_folder):
        root = make_folder({str(n): 1 for n in range(1, 13)})
        data = open_data(DataSpec(str(root)), LabelSpace(12))
        assert labels_of(data) == [int(folder.name) - 1 for folder in sorted(root.iterdir())]
        assert "the lowest is assumed to be label 0" in data.notes[0]

    def test_are_compared_by_value_with_a_models_own_numbers(self, make_folder):
        root = make_folder({f"{number:02}": 1 for number in range(12)})
        in_text_order = tuple(sorted(self.TWELVE))
        data = open_data(DataSpec(str(root)), LabelSpace(12, in_text_order))
        assert [int(in_text_order[label]) for label in labels_of(data)] == list(range(12))

    def test_say_nothing_about_a_model_with_names_of_its_own(self, make_folder):
        with pytest.raises(DataError, match="its classes are not those of the model"):
            open_data(DataSpec(str(make_folder({"0": 1, "1": 1}))), LabelSpace(2, ("cat", "dog")))


class TestOtherNamesThanTheModels:
    def test_are_an_error(self, make_folder):
        with pytest.raises(
            DataError, match="its classes are not those of the model: folders 'adog', 'zcat' in place of"
        ) as c:
            open_data(DataSpec(str(make_folder({"adog": 1, "zcat": 1}))), LabelSpace(2, ("cat", "dog")))
        assert "--class-map" in c.value.hint

    def test_are_taken_over_by_a_model_that_is_trained_on_them(self, make_folder):
        root = make_folder({"adog": 1, "zcat": 1})
        data = open_data(DataSpec(str(root)), LabelSpace(2, ("cat", "dog")), "train", renaming=True)
        assert data.label_space.names == ("adog", "zcat")
        assert "class names are not those of the data" in data.notes[0]

    @pytest.mark.parametrize("names", [None, IMAGENET], ids=["unnamed", "named"])
    def test_are_an_error_for_an_imagenet_model(self, make_folder, names):
        root = make_folder({f"class-{number:03}": 1 for number in range(1000)})
        with pytest.raises(DataError, match="in place of 'n01440764'"):
            open_data(DataSpec(str(root)), LabelSpace(1000, names))


def test_a_single_class_cannot_be_measured(make_folder):
    with pytest.raises(DataError, match="one class: every image is right"):
        open_data(DataSpec(str(make_folder({"cat": 1}))), LabelSpace(1))


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
    assert label_names(LabelSpace(1000, IMAGENET))[0] == "tench, Tinca tinca"
    assert label_names(LabelSpace(2, (IMAGENET[1], "my cat"))) == ("goldfish, Carassius auratus", "my cat")
    assert label_names(LabelSpace(2)) == ("class 0", "class 1")
    assert label_names(LabelSpace(1000))[0] == "class 0"


def test_a_thousand_classes_alone_are_not_imagenets():
    assert names_of({"tag": "augreg_in21k_ft_in1k"}, 1000) == IMAGENET
    assert len(names_of({"tag": "ms_in22k"}, 21841)) == 21841
    assert names_of({"tag": "augreg_in21k_ft_in1k"}, 1000, ["mine"] * 1000) == ("mine",) * 1000
    for cfg, classes in (({}, 1000), ({"tag": None}, 1000), ({"tag": "fb_in1k"}, 10)):
        assert names_of(cfg, classes) is None
