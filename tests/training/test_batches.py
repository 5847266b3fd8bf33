"""What a training step is given: images, labels, which images they are, their crops, and targets made ahead."""

import numpy as np
import pytest
import torch
from PIL import Image

from ofqctl.data import DataSpec, open_data
from ofqctl.distill import AboutSoftLabels, SoftLabels
from ofqctl.errors import DataError
from ofqctl.recipe.training import Training
from ofqctl.training import Share, TrainingBatches

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture
def data(tmp_path):
    """12 images of 2 classes, each of one colour that names it."""
    for number in range(12):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        pixels = np.full((20, 24, 3), 20 * number, np.uint8)
        pixels[:, 12:] += 7
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return open_data(DataSpec(str(tmp_path)))


def batches_of(data, share, **kwargs):
    labels = kwargs.pop("labels", None)
    return TrainingBatches(data, CONFIG, Training(augmentation=kwargs), share, seed=3, labels=labels)


def test_ids_say_which_images_they_are(data):
    seen = [
        (int(i), int(label))
        for b in batches_of(data, Share(4)).epoch(0)
        for i, label in zip(b.ids, b.labels, strict=True)
    ]
    assert sorted(i for i, _ in seen) == list(range(12))
    assert all(data[i][1] == label for i, label in seen)


def test_crops_of_one_image_follow_one_another_and_differ(data):
    batches = batches_of(data, Share(8), crops=4)
    assert batches.steps_per_epoch == 6
    (first, *_) = batches.epoch(0)
    assert (len(first), first.crops) == (8, 4)
    assert first.ids.tolist() == [i for i in first.ids[::4].tolist() for _ in range(4)]
    assert first.labels.tolist() == [label for label in first.labels[::4].tolist() for _ in range(4)]
    assert not torch.equal(first.images[0], first.images[1])


def test_crops_are_the_same_however_a_batch_is_split(data):
    (whole, *_) = batches_of(data, Share(8), crops=2).epoch(0)
    one, two, *_ = batches_of(data, Share(8, micro_batches=2), crops=2).epoch(0)
    assert torch.equal(whole.images, torch.cat([one.images, two.images]))


def test_an_image_is_decoded_once_for_all_its_crops(data, monkeypatch):
    decoded = []
    load = type(data).__getitem__
    monkeypatch.setattr(type(data), "__getitem__", lambda self, index: decoded.append(index) or load(self, index))
    next(iter(batches_of(data, Share(8), crops=4).epoch(0)))
    assert len(decoded) == 2


def test_a_batch_of_parts_of_images_is_refused(data):
    with pytest.raises(DataError, match="3 images in a forward pass are not crops of whole images, 2 of each"):
        batches_of(data, Share(6, micro_batches=2), crops=2)


def test_stored_crops_come_with_the_answers_that_they_were_made_for(data):
    number = torch.arange(12)[:, None] * 3 + torch.arange(3)
    about = AboutSoftLabels(
        teacher="t",
        teacher_digest="",
        data=data.identity,
        input_size=CONFIG["input_size"],
        interpolation=CONFIG["interpolation"],
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        views=3,
        top=1,
        classes=40,
        seed=0,
    )
    boxes = torch.tensor([0, 0, 20, 12]).expand(12, 3, 4).to(torch.int32)  # the left half has one colour
    likely, sure = number[..., None].to(torch.int32), torch.ones(12, 3, 1, dtype=torch.float16)
    labels = SoftLabels(about, boxes, torch.zeros(12, 3, dtype=torch.bool), likely, sure)
    for epoch, views in ((0, [0, 1]), (1, [2, 0]), (2, [1, 2])):
        for batch in batches_of(data, Share(4), labels=labels, crops=2).epoch(epoch):
            wanted = [3 * int(image) + view for image, view in zip(batch.ids, views * 2, strict=True)]
            assert batch.targets["answers"].argmax(1).tolist() == wanted
            assert batch.to(torch.device("cpu")).targets.keys() == {"answers"}
            assert torch.equal(batch.images.amin((1, 2, 3)), batch.images.amax((1, 2, 3)))
