"""Training on streams: the same images in the same steps, however often it was interrupted."""

import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ofqctl.data import DataSpec, LabelSpace, UnusableImageError, open_data
from ofqctl.errors import DataError
from ofqctl.jobs.train import train
from ofqctl.recipe.training import Training
from ofqctl.training import Share, TrainingBatches

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "crop_mode": "center",
}
CLASSES = ("class0", "class1", "class2")
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


@pytest.fixture
def stream_of(tmp_path):
    """Writes images into so many parquet files; the number of a picture is its colour."""

    def make(count=24, files=1, *, declared=True):
        root = tmp_path / f"table{count}-{files}-{declared}"
        (root / "data").mkdir(parents=True)
        for file in range(files):
            numbers = list(range(file, count, files))
            pixels = [np.full((20, 20, 3), 10 * number % 250, dtype=np.uint8) for number in numbers]
            rows = {"image": [Image.fromarray(p) for p in pixels], "label": [number % 3 for number in numbers]}
            table = datasets.Dataset.from_dict(rows, features=FEATURES)
            table.to_parquet(root / "data" / f"train-{file:05}-of-{files:05}.parquet")
        if declared:
            names = "".join(f"\n            '{i}': {name}" for i, name in enumerate(CLASSES))
            label = f"- name: label\n    dtype:\n      class_label:\n        names:{names}"
            features = f"- name: image\n    dtype: image\n  {label}"
            split = f"- name: train\n    num_bytes: 1\n    num_examples: {count}"
            files_of = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*"
            info = f"dataset_info:\n  features:\n  {features}\n  splits:\n  {split}\n{files_of}"
            (root / "README.md").write_text(f"---\n{info}\n---\n")
        return DataSpec(str(root), split="train", streaming=True)

    return make


def batches_of(spec, share, workers=0, **training):
    data = open_data(spec, LabelSpace(3, CLASSES))
    plain = {"scale": (0.9, 1.0), "hflip": 0.5} | training.pop("augmentation", {})
    settings = Training(batch_size=share.batch_size, augmentation=plain, **training)
    return TrainingBatches(data, CONFIG, settings, share, seed=3, workers=workers)


def epoch(batches, number=0, first_step=0):
    return [(batch.images.clone(), batch.labels.clone()) for batch in batches.epoch(number, first_step)]


def same(one, other):
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


def test_a_stream_that_says_its_length_gives_an_epoch_its_steps(stream_of):
    batches = batches_of(stream_of(count=27), Share(8))
    assert batches.steps_per_epoch == 3
    first, second = epoch(batches), epoch(batches, 1)
    assert [len(labels) for _, labels in first] == [8, 8, 8]
    assert not same(first, second)
    assert same(first, epoch(batches))


def test_a_stream_that_does_not_say_its_length_needs_the_steps(stream_of):
    spec = stream_of(declared=False)
    with pytest.raises(DataError, match="does not say how many images") as caught:
        batches_of(spec, Share(8))
    assert caught.value.hint == "--set training.steps_per_epoch=N"
    assert len(epoch(batches_of(spec, Share(8), steps_per_epoch=2))) == 2


def test_more_steps_than_images_are_refused_where_the_length_is_known(stream_of):
    with pytest.raises(DataError, match="4 steps of 8 images are more than its 24"):
        batches_of(stream_of(), Share(8), steps_per_epoch=4)


@pytest.mark.parametrize("repeats", [0, 3])
@pytest.mark.parametrize("first", [1, 2])
def test_an_epoch_goes_on_at_any_step_with_the_same_images(stream_of, first, repeats):
    batches = batches_of(stream_of(files=3), Share(8, micro_batches=2), augmentation={"repeats": repeats})
    assert same(epoch(batches, 2)[2 * first :], epoch(batches, 2, first))


def test_loading_processes_change_nothing(stream_of):
    spec = stream_of(files=2)
    assert same(epoch(batches_of(spec, Share(8))), epoch(batches_of(spec, Share(8), workers=2)))


def test_repeated_augmentation_takes_each_image_so_often(stream_of):
    ((images, labels), *_) = epoch(batches_of(stream_of(), Share(9), augmentation={"repeats": 3}))
    assert all(len(set(labels[i : i + 3].tolist())) == 1 for i in (0, 3, 6))
    assert images.shape == (9, 3, 16, 16)


def test_processes_share_one_file_so_that_their_batches_are_those_of_one(stream_of):
    spec = stream_of()
    whole = epoch(batches_of(spec, Share(8)))
    parts = [epoch(batches_of(spec, Share(8, rank=rank, world=2))) for rank in (0, 1)]
    for (images, _), (even, _), (odd, _) in zip(whole, *parts, strict=True):
        assert torch.equal(images[0::2], even)
        assert torch.equal(images[1::2], odd)


def test_processes_share_out_the_files_where_they_can(stream_of):
    spec = stream_of(files=4)
    seen = [
        torch.cat([images.mean(dim=(1, 2, 3)) for images, _ in epoch(batches_of(spec, Share(8, rank=rank, world=2)))])
        for rank in (0, 1)
    ]
    assert len(torch.cat(seen).round(decimals=2).unique()) == 24


def test_a_part_that_ends_early_begins_anew(stream_of):
    spec = stream_of(count=22, files=2, declared=False)  # 11 images for each of two processes
    batches = batches_of(spec, Share(8, rank=1, world=2), steps_per_epoch=3)
    assert [len(labels) for _, labels in epoch(batches)] == [4, 4, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_used_stops_with_its_name(stream_of, workers):
    data = open_data(stream_of(), LabelSpace(3, CLASSES))
    data._labels = {}
    batches = TrainingBatches(data, CONFIG, Training(batch_size=8), Share(8), seed=0, workers=workers)
    with pytest.raises(DataError, match=r"^\S*table\S*, image \d+ of the stream: class 'class\d' is unknown"):
        epoch(batches)


def test_training_on_a_stream_is_interrupted_and_goes_on_to_the_same_bits(request_for, stream_of):
    spec = stream_of(count=32, files=2)
    whole = replace(request_for("whole"), data=spec)
    train(whole)

    def stop(row, _total):
        if row["step"] == 6:
            raise MemoryError

    request = replace(request_for("stopped", checkpoint_every=1, resume="auto"), data=spec)
    with pytest.raises(MemoryError):
        train(request, on_step=stop)
    train(request)
    one, other = ((r.output / "model.safetensors").read_bytes() for r in (whole, request))
    assert one == other


def test_streams_are_validated_on_too(request_for, stream_of):
    spec = stream_of(count=16, declared=False)
    request = request_for(sets=["training.steps_per_epoch=2"], val_data=spec)
    result = train(replace(request, data=spec))
    assert result.training.epochs[-1].val_top1 is not None
    assert re.search(r"table16.*train", result.training.data)


@pytest.mark.parametrize("share", [Share(4), Share(4, micro_batches=2)])
def test_the_next_image_of_a_stream_is_taken_in_place_of_a_broken_one(stream_of, monkeypatch, share):
    spec = stream_of(48)
    batches = batches_of(spec, share)
    whole = [record.class_name for record in batches.data.stream(3 * 1_000_003)]
    load = type(batches.data).load

    def some_are_broken(self, record):
        if re.search("image [5679] of", record.name):
            raise UnusableImageError(record.name, "is broken")
        return load(self, record)

    monkeypatch.setattr(type(batches.data), "load", some_are_broken)
    seen = epoch(batches)
    wanted = [whole[{5: 8, 6: 8, 7: 8, 9: 10}.get(place, place)] for place in range(48)]
    assert [f"class{int(label)}" for _, labels in seen for label in labels] == wanted
    assert len(batches.skipped) == 4
    assert same(epoch(batches_of(spec, share, workers=2)), seen)
    assert same(epoch(batches_of(spec, share), first_step=1), seen[share.micro_batches :])
    for number in range(1, 4):
        epoch(batches, number)
    assert len(batches.skipped) == 4  # in an epoch, of which each has an order of its own
