"""Parts of splits: nothing twice, nothing left out, and the same share of every class."""

from collections import Counter
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ofqctl.data import DataSpec
from ofqctl.data.opening import open_data
from ofqctl.data.sources.parts import named_part, part_of
from ofqctl.data.sources.source import Record, Source
from ofqctl.errors import DataError

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def source_of(counts: list[int]) -> Source:
    records = [Record(f"{label}/{number}", "", str(label)) for label, n in enumerate(counts) for number in range(n)]
    return Source("source", records, None, len(counts))


def names(source: Source, text: str) -> list[str]:
    _, part = named_part(text)
    try:
        return [record.name for record in part_of(source, part).records]
    except DataError:
        return []


@given(COUNTS, st.lists(st.integers(0, 100), min_size=1, max_size=4).map(sorted))
def test_parts_that_follow_each_other_are_the_whole(counts, percents):
    source = source_of(counts)
    bounds = ["", *(f"{percent}%" for percent in percents), ""]
    parts = [names(source, f"[{first}:{last}]") for first, last in pairwise(bounds)]
    assert sorted(chain.from_iterable(parts)) == sorted(record.name for record in source.records)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 100), st.integers(0, 100))
def test_a_part_has_the_same_share_of_every_class(count, classes, one, other):
    counts, (first, last) = [count] * classes, sorted((one, other))
    got = Counter(name.split("/")[0] for name in names(source_of(counts), f"[{first}%:{last}%]"))
    chosen = sum(got.values())
    assert chosen == round(sum(counts) * last / 100) - round(sum(counts) * first / 100)
    assert max(got.values(), default=0) - min(got[str(label)] for label in range(classes)) <= 1


def test_a_part_of_unequal_classes_has_each_of_them_in_proportion():
    got = Counter(name.split("/")[0] for name in names(source_of([400, 200, 50]), "[20%:40%]"))
    assert got == {"0": 80, "1": 40, "2": 10}


@pytest.mark.parametrize(
    ("text", "count"),
    [("[:7]", 7), ("[-7:]", 7), ("[3:7]", 4), ("[:]", 30), ("[:-10%]", 27), ("[-10%:]", 3), ("[25:90]", 5)],
)
def test_numbers_and_shares_count_from_either_end(text, count):
    assert len(names(source_of([10, 20]), text)) == count


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 10), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_a_part_of_the_training_images_is_held_out(folder):
    fit, held = (
        open_data(DataSpec(str(folder), split=split), purpose="train") for split in ("train[:80%]", "train[80%:]")
    )
    seen = [[data.record(index).name for index in range(len(data))] for data in (fit, held)]
    assert [len(each) for each in seen] == [16, 4]
    assert not set(seen[0]) & set(seen[1])
    assert Counter(name.split("/")[-2] for name in seen[1]) == {"cat": 2, "dog": 2}
    assert fit.name == f"{folder}/train[:80%]"
    assert seen[0] == sorted(seen[0])


def test_without_a_name_it_is_a_part_of_what_would_be_read(folder):
    whole = open_data(DataSpec(str(folder)), purpose="train")
    part = open_data(DataSpec(str(folder), split="[:50%]"), purpose="train")
    assert (len(whole), len(part)) == (20, 10)
    flat = open_data(DataSpec(str(folder / "val" / "cat"), split="[2:]"))
    assert [flat.record(index).name.split("/")[-1] for index in range(2)] == ["2.png", "3.png"]


def test_a_part_is_the_same_data_wherever_it_lies(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "here"
    folder.rename(other)
    before = open_data(DataSpec(str(other), split="train[:80%]"), purpose="train").identity
    other.rename(folder)
    assert open_data(DataSpec(str(folder), split="train[:80%]"), purpose="train").identity == before
    assert open_data(DataSpec(str(folder), split="train[20%:]"), purpose="train").identity != before


def test_digits_have_parts_too():
    fit, held = (
        open_data(DataSpec("digits", split=split), purpose="train") for split in ("train[:75%]", "train[75%:]")
    )
    assert len(fit) + len(held) == 1437
    assert held.class_count == 10


@pytest.mark.parametrize("split", ["train[", "train[:80%", "train[80%]", "train[:120%]", "train[a:b]", "]", "[:1][2:]"])
def test_what_is_no_part_is_refused(folder, split):
    with pytest.raises(DataError, match="not a part of a split"):
        open_data(DataSpec(str(folder), split=split), purpose="train")


@pytest.mark.parametrize("split", ["train[90%:10%]", "train[:0]", "train[100%:]", "train[20:]"])
def test_a_part_without_images_is_refused(folder, split):
    with pytest.raises(DataError, match="there is no image in the part"):
        open_data(DataSpec(str(folder), split=split), purpose="train")
