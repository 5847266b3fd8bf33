"""Soft labels: what is stored is what the teacher says of these crops, and training with them asks no teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ofqctl.cli.app import main
from ofqctl.data import DataSpec, open_data
from ofqctl.distill import SoftLabels, Teacher
from ofqctl.errors import ArtifactError, ModelError, RecipeError
from ofqctl.evaluation import open_subject
from ofqctl.jobs.distill_cache import DistillCacheRequest, distill_cache
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.training import Training
from ofqctl.training import Share, TrainingBatches

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SETS = (
    "training.distillation={hard: 0.0, soft: 1.0}",
    "training.batch_size=8",
    "calibration.images=4",
    "training.tracking=null",
    "training.augmentation={scale: [0.3, 1.0], hflip: 0.5, crops: 2}",
    "training.phases=[{name: train, epochs: 2, lr: 1.0e-3}]",
)


@pytest.fixture
def photos(tmp_path):
    """8 images of noise in 2 classes."""
    random = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 56, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def float_run(tmp_path, photos):
    """A float model in a folder, so that it is the same whenever it is named."""
    small = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=2, kwargs=SMALL)
    recipe = load("bench/imagenette_float", ["training.batch_size=8", "training.phases.0.epochs=1"])
    train(TrainRequest(small, recipe, DataSpec(str(photos)), output=tmp_path / "float", device="cpu"))
    return ModelRequest(str(tmp_path / "float"))


def recipe(*sets):
    return load("bench/imagenette_w2a2", [*SETS, *sets])


def cached(model, photos, output, own=None, **options):
    distill_cache(DistillCacheRequest(model, own or recipe(), DataSpec(str(photos)), output, device="cpu", **options))
    return output


def training(model, photos, output, labels, own=None):
    return TrainRequest(model, own or recipe(), DataSpec(str(photos)), output=output, soft_labels=labels, device="cpu")


def test_what_is_stored_is_what_the_teacher_says_of_the_crops(float_run, photos, tmp_path):
    labels = SoftLabels.read(cached(float_run, photos, tmp_path / "soft.safetensors", views=5, top=2, batch_size=3))
    assert len({tuple(box) for box in labels.boxes.flatten(0, 1).tolist()}) > 20
    assert 0 < int(labels.flips.sum()) < labels.flips.numel()
    subject, own = open_subject(float_run), Training(augmentation=recipe().training.augmentation.model_dump())
    data = open_data(DataSpec(str(photos)))
    batches = TrainingBatches(data, subject.data_config, own, Share(8), seed=1, labels=labels)
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            with torch.no_grad():
                said = subject.model(batch.images).softmax(1)
            torch.testing.assert_close(batch.targets["answers"].exp(), said, atol=2e-3, rtol=0.0)


def test_what_is_not_stored_is_spread_over_the_other_classes(float_run, photos, tmp_path):
    labels = SoftLabels.read(cached(float_run, photos, tmp_path / "soft.safetensors", views=2, top=1))
    answers = labels.answers(torch.tensor([0, 3]), torch.tensor([0, 1])).exp()
    torch.testing.assert_close(answers.sum(1), torch.ones(2), atol=1e-3, rtol=0.0)
    assert float(answers.min()) > 0


def test_training_with_them_asks_no_teacher_and_is_the_same_twice(float_run, photos, tmp_path, monkeypatch):
    labels = cached(float_run, photos, tmp_path / "soft.safetensors", views=4)
    monkeypatch.setattr(Teacher, "forward", lambda self, images: pytest.fail("the teacher was asked"))
    losses = [
        [row.loss for row in train(training(float_run, photos, tmp_path / name, labels)).training.epochs]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]
    assert all(0.0 < loss < 5.0 for loss in losses[0])


def test_a_training_goes_on_with_the_same_soft_labels_alone(float_run, photos, tmp_path):
    labels = cached(float_run, photos, tmp_path / "soft.safetensors", views=2)
    request = training(float_run, photos, tmp_path / "run", labels)

    def stop(_row, _total):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(replace(request, checkpoint_every=1), on_step=stop)
    moved = labels.rename(tmp_path / "moved.safetensors")
    resumed = replace(request, resume="auto", soft_labels=cached(float_run, photos, labels, views=2, seed=1))
    with pytest.raises(RecipeError, match=r"was trained on other data:\n  data\.soft_labels: "):
        train(resumed)
    train(replace(resumed, soft_labels=moved))


def test_an_image_that_cannot_be_read_is_left_out_and_told(float_run, photos, tmp_path):
    (photos / "class0" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    data = DataSpec(str(photos))
    result = distill_cache(DistillCacheRequest(float_run, recipe(), data, tmp_path / "s.safetensors", 2, device="cpu"))
    assert (result.images, len(result.skipped)) == (8, 1)
    assert "bad.png" in result.skipped[0].image


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("training.augmentation.scale=[0.5,1.0]",), "scale"),
        (("training.augmentation.auto_augment=rand-m9",), "auto_augment would change the images"),
        (("training.augmentation.mixup=0.8",), "mixup would change"),
        (("training.distillation.features={target: blocks.*}",), "features asks the teacher itself"),
        (("training.distillation=null",), "learns from no teacher"),
    ],
)
def test_a_recipe_that_they_do_not_fit_is_refused(float_run, photos, tmp_path, sets, message):
    labels = cached(float_run, photos, tmp_path / "soft.safetensors", views=2)
    with pytest.raises(RecipeError, match=message):
        train(training(float_run, photos, tmp_path / "run", labels, recipe(*sets)))
    assert not (tmp_path / "run" / "config.json").exists()


def test_another_teacher_and_other_images_are_refused(float_run, photos, tmp_path):
    labels = cached(float_run, photos, tmp_path / "soft.safetensors", views=2)
    other = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=2, kwargs=SMALL)
    with pytest.raises(RecipeError, match="the weights of the teacher are others"):
        train(training(other, photos, tmp_path / "run", labels))
    (photos / "class0" / "0.png").rename(photos / "class0" / "renamed.png")
    with pytest.raises(RecipeError, match="the images are others"):
        train(training(float_run, photos, tmp_path / "run", labels))


def test_damaged_and_other_files_are_refused(float_run, photos, tmp_path):
    path = cached(float_run, photos, tmp_path / "soft.safetensors", views=2)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    content = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    for name, message in (("missing", "cannot be read"), ("plain", "no soft labels"), ("cut", "cannot be read")):
        with pytest.raises(ArtifactError, match=message):
            SoftLabels.read(tmp_path / f"{name}.safetensors")


def test_embeddings_and_recipes_without_training_are_refused(float_run, photos, tmp_path):
    features = ModelRequest("vit_tiny_patch16_224", pretrained=False, features=True, kwargs=SMALL)
    with pytest.raises(ModelError, match="gives embeddings"):
        cached(features, photos, tmp_path / "soft.safetensors")
    with pytest.raises(RecipeError, match="has no training part"):
        cached(float_run, photos, tmp_path / "soft.safetensors", load("ptq/minmax"))


def test_the_command_says_what_it_wrote(float_run, photos, tmp_path, capsys):
    path = tmp_path / "soft.safetensors"
    words = ["distill-cache", float_run.name, "--recipe", "vvtq/deit_tiny_w2a2", "--data", str(photos)]
    assert main([*words, "--views", "3", "--output", str(path)]) == 0
    assert "crops of each" in capsys.readouterr().out
    assert SoftLabels.read(path).about.views == 3
