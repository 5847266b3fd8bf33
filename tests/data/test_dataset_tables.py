import io
import tarfile

import datasets
import fsspec
import pytest
from datasets import ClassLabel, Value
from PIL import Image
from timm.data import ImageNetInfo

from ofqctl.data import DataSpec, LabelSpace, image_loader, label_names, open_data
from ofqctl.errors import DataError

IDS = tuple(ImageNetInfo("imagenet-1k").label_names())
ANIMALS = ClassLabel(names=["owl", "cat"])


@pytest.fixture
def images(noise):
    """A column of four images."""
    return datasets.Image(), [noise(seed) for seed in range(4)]


@pytest.fixture
def nine_images(noise):
    return datasets.Image(), [noise(seed) for seed in range(9)]


def open_table(root, labels=None, **options):
    return open_data(DataSpec(str(root), **options), labels)


def labels_of(data):
    return [label for _, label in data]


def test_declared_classes_keep_their_own_order(make_table, images):
    data = open_table(make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])}), split="train")
    assert labels_of(data) == [0, 1, 1, 0]
    assert data.label_space == LabelSpace(2, ("owl", "cat"))
    assert data[0][0].mode == "RGB"
    assert data.notes == ()


def test_declared_classes_map_by_the_models_names(make_table, images):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])})
    assert labels_of(open_table(root, LabelSpace(3, ("cat", "dog", "owl")))) == [2, 0, 0, 2]


def test_declared_classes_that_do_not_fit_the_model_are_an_error(make_table, images):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])})
    with pytest.raises(DataError, match="2 classes do not fit a model with 1000 classes"):
        open_table(root, LabelSpace(1000))


@pytest.mark.parametrize(
    ("splits", "taken"),
    [(("train", "test"), "test"), (("train", "validation", "test"), "validation"), (("train",), "train")],
)
def test_without_a_split_the_one_to_validate_on_is_taken_and_noted(make_table, splits, taken, images):
    data = open_table(make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])}, splits))
    assert data.name.endswith(f":{taken}")
    assert data.notes[0].startswith(f"split '{taken}' was chosen")


def test_a_split_goes_by_its_alias_and_may_be_sliced(make_table, images):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])}, ("train", "validation"))
    assert len(open_table(root, split="val")) == 4
    assert len(open_table(root, split="train[:50%]")) == 2
    assert len(open_table(root, split="[:50%]")) == len(open_table(root)) // 2


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [("split", "tset", "test"), ("image_column", "images", "image"), ("label_column", "labels", "label")],
)
def test_an_unknown_split_or_column_suggests_the_closest(make_table, images, option, wrong, right):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])})
    with pytest.raises(DataError, match=f"'{wrong}'; ") as caught:
        open_table(root, **{option: wrong})
    assert caught.value.hint == f"did you mean '{right}'?"


def test_text_labels_are_numbered_in_sorted_order(make_table, images):
    data = open_table(make_table({"image": images, "label": (Value("string"), ["b", "a", "c", "a"])}))
    assert labels_of(data) == [1, 0, 2, 0]
    assert data.label_space.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("splits", "taken"), [(("train", "test"), "train"), (("validation", "train"), "train"), (("photos",), "photos")]
)
def test_training_takes_the_training_split_or_the_only_one(make_table, splits, taken, images):
    data = open_data(
        DataSpec(str(make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])}, splits))), purpose="train"
    )
    assert data.name.endswith(f":{taken}")
    assert bool(data.notes) == (taken != "train")


@pytest.mark.parametrize("splits", [("test",), ("validation",), ("left", "right")])
def test_training_takes_no_split_for_measuring_and_none_of_several(make_table, splits, images):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])}, splits)
    with pytest.raises(DataError, match=f"none is for training; available are {', '.join(splits)}"):
        open_data(DataSpec(str(root)), purpose="train")


def test_calibration_does_not_guess_which_column_holds_labels(make_table, images):
    root = make_table({"image": images, "y": (Value("int64"), [0, 1, 1, 0])})
    data = open_data(DataSpec(str(root)), purpose="calibrate")
    assert (data.labelled, data.notes, data.name.rsplit(":")[-1]) == (False, (), "train")


def test_text_labels_that_are_numbers_are_ordered_by_value(make_table, noise):
    numbers = [str(number) for number in range(11)]
    root = make_table({"image": (datasets.Image(), [noise(0)] * 11), "label": (Value("string"), numbers)})
    assert labels_of(open_table(root, LabelSpace(11))) == list(range(11))


def test_classes_with_the_words_of_imagenet_in_its_order_are_imagenets(make_table, noise):
    words = [name.replace("crane", f"crane{label}") for label, name in enumerate(label_names(LabelSpace(1000, IDS)))]
    root = make_table({"image": (datasets.Image(), [noise(0)]), "label": (ClassLabel(names=words), [217])})
    data = open_table(root, LabelSpace(1000, IDS))
    assert labels_of(data) == [217]
    assert "with the words of the ImageNet-1k classes" in data.mapping
    words.reverse()
    root = make_table({"image": (datasets.Image(), [noise(0)]), "label": (ClassLabel(names=words), [217])})
    with pytest.raises(DataError, match="are not the ImageNet-1k classes"):
        open_table(root, LabelSpace(1000, IDS))


def test_plain_numbers_are_the_labels(make_table, images):
    root = make_table({"image": images, "target": (Value("int64"), [2, 0, 1, 2])})
    data = open_table(root, LabelSpace(3))
    assert labels_of(data) == [2, 0, 1, 2]
    assert any("label column 'target' was guessed" in note for note in data.notes)
    with pytest.raises(DataError, match="3 classes do not fit a model with 10"):
        open_table(root, LabelSpace(10))


def test_the_image_column_may_hold_bytes_that_nothing_declares_as_images(make_table, tmp_path, noise):
    noise(0).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    data = open_table(make_table({"img": (Value("binary"), [content] * 2), "y": (Value("int64"), [0, 1])}))
    assert data[0][0].tobytes() == noise(0).tobytes()
    assert any("image column 'img' was guessed" in note for note in data.notes)


def test_of_several_label_columns_a_known_name_is_guessed_and_noted(make_table, images):
    fine, coarse = (ANIMALS, [0, 1, 0, 1]), (ClassLabel(names=["bird", "mammal"]), [0, 1, 0, 1])
    root = make_table({"image": images, "coarse_label": coarse, "fine_label": fine})
    data = open_table(root)
    assert data.label_space.names == ("owl", "cat")
    assert any("label column 'fine_label' was guessed" in note for note in data.notes)
    assert open_table(root, label_column="coarse_label").label_space.names == ("bird", "mammal")


def test_several_label_columns_with_unknown_names_are_an_error(make_table, images):
    root = make_table({"image": images, "kind": (ANIMALS, [0] * 4), "mood": (ANIMALS, [0] * 4)})
    with pytest.raises(DataError, match="kind, mood all hold class labels"):
        open_table(root)


def test_a_label_column_of_another_type_is_an_error(make_table, images):
    root = make_table({"image": images, "weight": (Value("float32"), [0.5] * 4)})
    with pytest.raises(DataError, match="allowed are integers and text"):
        open_table(root, label_column="weight")


def test_a_number_that_is_no_label_is_an_error(make_table, images):
    with pytest.raises(DataError, match="holds the number 1000000000000; labels are 0"):
        open_table(make_table({"image": images, "label": (Value("int64"), [0, 1, 2, 10**12])}), LabelSpace(3))


def test_a_table_without_images_is_an_error(make_table):
    with pytest.raises(DataError, match="no column is clearly the image; the columns are text, label"):
        open_table(make_table({"text": (Value("string"), ["a"]), "label": (ANIMALS, [0])}))


@pytest.mark.parametrize("hidden", [{}, {"label": (ANIMALS, [-1] * 4)}], ids=["no column", "no labels in it"])
def test_a_table_without_labels_is_unlabelled(make_table, hidden, images):
    data = open_table(make_table({"image": images, **hidden}))
    assert not data.labelled
    assert labels_of(data) == [-1] * 4
    assert "unlabelled" in data.notes[-1]


def test_the_identity_of_a_table_is_in_its_rows(make_table, noise):
    images = datasets.Image(), [noise(seed, 4 + seed) for seed in range(4)]
    labels = [0, 1, 1, 0]
    digests = []
    for changed in (labels, labels, [1, 1, 1, 0]):
        root = make_table({"image": images, "label": (ANIMALS, changed)}, ("train",))
        digests.append(open_table(root).identity["digest"])
        root.rename(root.with_name(f"elsewhere-{len(digests)}"))
    reversed_images = (images[0], images[1][::-1])
    digests.append(open_table(make_table({"image": reversed_images, "label": (ANIMALS, labels)})).identity["digest"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_damaged_parquet_file_is_an_error(make_table, images):
    root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])})
    (root / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="`datasets` cannot read it"):
        open_table(root)


def test_a_damaged_image_and_a_missing_label_are_skipped_by_name(make_table, config, images):
    broken = {"bytes": b"\xff\xd8 cut short", "path": None}
    content = [*images[1][:3], broken]
    data = open_table(make_table({"image": (datasets.Image(), content), "label": (ANIMALS, [0, -1, 1, 1])}))
    loader = image_loader(data, config, batch_size=4)
    ((_, labels),) = list(loader)
    assert labels.tolist() == [0, 1]
    assert [(skip.name.rsplit(":")[-1], skip.reason) for skip in loader.skipped] == [
        ("test[1]", "has no label"),
        ("test[3]", "is not an image of a known format"),
    ]


def test_an_image_may_be_a_url(make_table, noise):
    with fsspec.open("memory://owl.png", "wb") as file:
        noise(5).save(file, format="PNG")
    data = open_table(make_table({"image": (Value("string"), ["memory://owl.png"]), "y": (Value("int64"), [0])}))
    assert data[0][0].tobytes() == noise(5).tobytes()


class TestStreaming:
    def test_gives_the_same_images_in_the_same_order(self, make_table, images):
        root = make_table({"image": images, "label": (ANIMALS, [0, 1, 1, 0])})
        data = open_table(root, LabelSpace(2), streaming=True)
        assert data.streaming
        assert data.image_count is None
        assert labels_of(data) == [0, 1, 1, 0]
        with pytest.raises(TypeError, match="streamed"):
            len(data)
        with pytest.raises(TypeError, match="streamed"):
            data[0]

    @pytest.mark.parametrize("limit", [None, 5])
    def test_gives_the_same_batches_whatever_the_number_of_workers(self, make_table, config, limit, nine_images):
        root = make_table({"image": nine_images, "y": (Value("int64"), range(9))}, ("test",))
        data = open_table(root, LabelSpace(9), streaming=True)
        batches = [
            [labels.tolist() for _, labels in image_loader(data, config, batch_size=2, workers=workers, limit=limit)]
            for workers in (0, 2)
        ]
        assert batches[0] == batches[1]
        labels = [label for batch in batches[0] for label in batch]
        assert len(labels) == len(set(labels)) == (limit or 9)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_gives_processes_the_batches_of_one_in_turn(self, make_table, config, workers, nine_images):
        root = make_table({"image": nine_images, "y": (Value("int64"), range(9))}, ("test",))
        data = open_table(root, LabelSpace(9), streaming=True)
        shares = []
        for rank in range(3):
            loader = image_loader(data, config, batch_size=2, workers=workers, rank=rank, world=3)
            shares.append([labels.tolist() for _, labels in loader])
        assert shares == [[[0, 1], [6, 7]], [[2, 3], [8]], [[4, 5]]]

    def test_shuffles_anew_each_epoch(self, make_table, config, nine_images):
        root = make_table({"image": nine_images, "y": (Value("int64"), range(9))}, ("test",))
        loader = image_loader(open_table(root, LabelSpace(9), streaming=True), config, batch_size=9, shuffle=True)
        orders = []
        for epoch in (0, 1, 0):
            loader.set_epoch(epoch)
            orders += [labels.tolist() for _, labels in loader]
        assert orders[0] == orders[2] != orders[1]

    def test_maps_text_labels_that_the_model_knows(self, make_table, images):
        root = make_table({"image": images, "label": (Value("string"), ["b", "a", "b", "a"])})
        assert labels_of(open_table(root, LabelSpace(2, ("a", "b")), streaming=True)) == [1, 0, 1, 0]

    def test_refuses_text_labels_that_nothing_numbers(self, make_table, images):
        root = make_table({"image": images, "label": (Value("string"), ["b", "a", "b", "a"])})
        with pytest.raises(DataError, match="a stream does not list its classes"):
            open_table(root, LabelSpace(2), streaming=True)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_reports_an_unknown_class_when_it_meets_it(self, make_table, config, workers, images):
        root = make_table({"image": images, "label": (Value("string"), ["a", "a", "a", "z"])})
        data = open_table(root, LabelSpace(2, ("a", "b")), streaming=True)
        with pytest.raises(DataError, match="image 3 of the stream: class 'z' is unknown") as caught:
            list(image_loader(data, config, batch_size=2, workers=workers))
        assert "Traceback" not in str(caught.value)
        assert "--class-map" in caught.value.hint


def test_tars_of_webdataset_are_read_like_tables(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        with tarfile.open(tmp_path / f"{split}-0000.tar", "w") as tar:
            for number in range(count):
                png = io.BytesIO()
                Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(png, "PNG")
                for suffix, content in (("png", png.getvalue()), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{number:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    data = open_data(DataSpec(str(tmp_path), split="train"), LabelSpace(2))
    assert [(image.getpixel((0, 0))[0], label) for image, label in data] == [(10 * n, n % 2) for n in range(6)]
    assert len(open_data(DataSpec(str(tmp_path), split="val"), LabelSpace(2))) == 3


def test_a_tar_without_images_of_webdataset_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "train-0000.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a/readme.txt"))
    with pytest.raises(DataError):
        open_data(DataSpec(str(tmp_path)), LabelSpace(2))
