"""Training with files among the images that cannot be used."""

import re
import shutil
from dataclasses import replace

import pytest
import torch

from ofqctl.data import DataSpec, open_data
from ofqctl.errors import DataError
from ofqctl.jobs.train import train
from ofqctl.recipe.training import Training
from ofqctl.training import Share, TrainingBatches

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
BROKEN = ("class0/3.png", "class1/0.png", "class2/9.png")  # the last image of all is among them


@pytest.fixture
def broken_folder(folder, tmp_path):
    """48 images, of which three are no images: one empty, one cut short, one text."""
    root = tmp_path / "broken"
    shutil.copytree(folder, root)
    (root / BROKEN[0]).write_bytes(b"")
    (root / BROKEN[1]).write_bytes((root / BROKEN[1]).read_bytes()[:200])
    (root / BROKEN[2]).write_text("no image")
    return root


def batches_of(root, workers=0, micro=1):
    data = open_data(DataSpec(str(root)))
    return TrainingBatches(data, CONFIG, Training(), Share(8, micro), seed=3, workers=workers)


def test_the_next_image_is_taken_in_place_of_a_broken_one(broken_folder, folder):
    batches, intact = batches_of(broken_folder), batches_of(folder)
    seen = list(zip(batches.epoch(0), intact.epoch(0), strict=True))
    names = sorted(map(str, broken_folder.rglob("*.png")))
    broken = [names.index(str(broken_folder / name)) for name in BROKEN]
    replaced = {index: (index + 1) % 48 for index in broken}
    for ours, whole in seen:
        wanted = [replaced.get(number, number) for number in whole.ids.tolist()]
        assert ours.ids.tolist() == wanted
        assert ours.labels.tolist() == [batches.data[number][1] for number in wanted]
        same = [a == b for a, b in zip(wanted, whole.ids.tolist(), strict=True)]
        assert torch.equal(ours.images[same], whole.images[same])
    assert sorted(batches.skipped) == [str(broken_folder / name) for name in BROKEN]


@pytest.mark.parametrize(("workers", "micro"), [(2, 1), (0, 2)])
def test_what_is_taken_depends_neither_on_processes_nor_on_micro_batches(broken_folder, workers, micro):
    wanted = torch.cat([batch.images for batch in batches_of(broken_folder).epoch(1)])
    batches = batches_of(broken_folder, workers, micro)
    assert torch.equal(torch.cat([batch.images for batch in batches.epoch(1)]), wanted)
    assert len(batches.skipped) == 3


def test_training_goes_on_lists_what_it_skipped_and_resumes_exactly(request_for, broken_folder):
    request = request_for("whole", data=DataSpec(str(broken_folder)), checkpoint_every=2)
    result = train(request)
    assert sorted(image.image for image in result.training.skipped) == [str(broken_folder / name) for name in BROKEN]

    def stop(row, _total):
        if row["step"] == 9:
            raise MemoryError

    interrupted = replace(request, output=request.output.with_name("stopped"))
    with pytest.raises(MemoryError):
        train(interrupted, on_step=stop)
    resumed = train(replace(interrupted, resume="auto"))
    assert sorted(map(str, resumed.training.skipped)) == sorted(map(str, result.training.skipped))
    files = [(r.output / "model.safetensors").read_bytes() for r in (request, interrupted)]
    assert files[0] == files[1]


def test_training_ends_when_a_tenth_of_the_images_cannot_be_used(broken_folder):
    for number in range(4, 9):
        (broken_folder / "class0" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"too many images cannot be used, \d so far; the first, .*png"):
        list(batches_of(broken_folder).epoch(0))


def test_nothing_but_broken_images_is_an_error_and_not_an_endless_search(broken_folder):
    for path in broken_folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="too many images cannot be used"):
        list(batches_of(broken_folder).epoch(0))


def test_all_headers_are_looked_at_before_the_first_step_if_asked(request_for, broken_folder):
    request = request_for(data=DataSpec(str(broken_folder)), check_data=True)
    with pytest.raises(DataError, match=re.escape("--check-data: 2 files are no images:")) as error:
        train(request)
    assert all(str(broken_folder / name) in error.value.message for name in (BROKEN[0], BROKEN[2]))
    assert not request.output.exists()
