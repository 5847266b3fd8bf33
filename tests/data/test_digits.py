from collections import Counter

import pytest

from ofqctl.data import DataSpec, LabelSpace, open_data
from ofqctl.errors import DataError


def test_the_splits_share_no_image_and_hold_all_digits():
    train, test = (open_data(DataSpec("digits", split=split)) for split in ("train", "test"))
    assert (len(train), len(test), train.class_count) == (1437, 360, 10)
    names = [{record.name for record in data._records} for data in (train, test)]
    assert not names[0] & names[1]
    counts = Counter(label for _, label in test)
    assert sorted(counts) == list(range(10))
    assert max(counts.values()) - min(counts.values()) <= 3


def test_images_are_rgb_and_use_the_whole_range():
    image, _ = open_data(DataSpec("digits"))[0]
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert max(high for _, high in image.getextrema()) == 255


def test_the_test_split_is_the_default_and_also_called_val():
    default, val = open_data(DataSpec("digits")), open_data(DataSpec("digits", split="val"))
    assert default.name == val.name == "digits/test"
    assert [label for _, label in default] == [label for _, label in val]


def test_a_model_that_knows_the_digits_by_name_needs_no_guess():
    space = LabelSpace(10, tuple("9876543210"))
    data = open_data(DataSpec("digits"), space)
    plain = open_data(DataSpec("digits"))
    assert [label for _, label in data] == [9 - label for _, label in plain]
    assert data.notes == ()


def test_an_unknown_split_or_class_count_is_an_error():
    with pytest.raises(DataError, match="no split 'trian'; available are train, test"):
        open_data(DataSpec("digits", split="trian"))
    with pytest.raises(DataError, match="10 digits do not fit a model with 1000 classes"):
        open_data(DataSpec("digits"), LabelSpace(1000))
