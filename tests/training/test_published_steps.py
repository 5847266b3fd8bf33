"""Every published recipe takes the paper's step: one whole step of the engine against OFQ written out plainly."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup

from ofqctl.data import DataSpec
from ofqctl.jobs import train as job
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load, names

_SPEC = importlib.util.spec_from_file_location("plain_ofq", Path(__file__).with_name("plain_ofq.py"))
plain_ofq = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(plain_ofq)

PUBLISHED = [
    n for n in names() if n.startswith("ofq/") and not n.startswith("ofq/backbone_")
]  # their objective is ours
CLASSES = 3
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 3], "window_size": 4}


class Stopped(Exception):
    """After the first step."""


@pytest.fixture
def first_step(folder, tmp_path, monkeypatch):
    """Trains for one step; gives the state before it, its batch, the loss, the gradients and numpy's generator."""

    def take(recipe, architecture, kwargs, weights):
        seen = {}

        def noted(batch):
            seen["batch"] = batch.images.clone(), batch.labels.clone()  # mixing overwrites them
            return batch

        class Watched(job.Engine):
            def fit(self):
                noise = torch.Generator().manual_seed(2)
                with torch.no_grad():  # shifts start at 0, where it would not show whether they are added
                    for name, parameter in self.model.named_parameters():
                        if name.endswith((".before", ".after")):
                            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
                seen["state"] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
                seen["numpy"], epoch = np.random.get_state(), self.batches.epoch
                self.batches.epoch = lambda *where: map(noted, epoch(*where))
                seen["model"] = self.model
                return super().fit()

        def stop(row, _total):
            seen["loss"] = row["step_loss"]
            seen["gradients"] = {name: p.grad for name, p in seen["model"].named_parameters()}
            raise Stopped

        monkeypatch.setattr(job, "Engine", Watched)
        model = ModelRequest(architecture, checkpoint=weights, num_classes=CLASSES, kwargs=kwargs)
        with pytest.raises(Stopped):
            train(
                TrainRequest(model, recipe, DataSpec(str(folder)), output=tmp_path / "run", device="cpu"), on_step=stop
            )
        return seen

    return take


def float_model(recipe):
    """The architecture that a recipe is for, made small, with weights that tell the classes apart; its arguments."""
    architecture = recipe.model or "vit_tiny_patch16_224"
    kwargs = SWIN if architecture.startswith("swin") else VIT
    torch.manual_seed(0)
    model = timm.create_model(
        architecture, num_classes=CLASSES, drop_path_rate=recipe.training.drop_path or 0.0, **kwargs
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, architecture, kwargs


def mixed(augmentation, images, labels, generator):
    """Images and their targets, (B, classes), mixed by timm as the recipe says."""
    if augmentation.mixup == augmentation.cutmix == 0.0:
        return images, torch.nn.functional.one_hot(labels, CLASSES).float()
    np.random.set_state(generator)
    mixup = Mixup(augmentation.mixup, augmentation.cutmix, label_smoothing=0.0, num_classes=CLASSES)
    return mixup(images.clone(), labels)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_takes_the_step_of_the_paper(name, first_step, tmp_path):
    recipe = load(name, ["training.batch_size=4", "calibration.images=4", "calibration.batch_size=4"])
    teacher, architecture, kwargs = float_model(recipe)
    torch.save(teacher.state_dict(), tmp_path / "float.pth")
    seen = first_step(recipe, architecture, kwargs, tmp_path / "float.pth")

    student = plain_ofq.quantized(teacher, seen["state"], recipe.weights.bits)
    images, target = mixed(recipe.training.augmentation, *seen["batch"], seen["numpy"])
    loss = plain_ofq.distilled_loss(student, teacher, images, target)
    loss.backward()
    assert seen["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert dict(student.named_parameters()).keys() == seen["gradients"].keys()
    largest = max(torch.linalg.norm(parameter.grad) for parameter in student.parameters())
    for parameter, tensor in student.named_parameters():
        # backward knows distances from the grid to 12-14 bits: a step's gradient is as exact as its terms are large;
        # that of a shift behind W_qk x, which is the same in all logits of a query, is 0 but for rounding
        size = (
            student.get_submodule(parameter.removesuffix(".step")).terms if parameter.endswith(".step") else tensor.grad
        )
        off = torch.linalg.norm(seen["gradients"][parameter] - tensor.grad)
        assert off <= 1e-4 * torch.linalg.norm(size) + 1e-7 * largest, parameter
