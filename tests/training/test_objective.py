"""What a model with a distillation head trains: two heads apart with a teacher, their mean without one."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from ofqctl.data import Batch
from ofqctl.distill import Teacher
from ofqctl.recipe.training import Distillation, Training
from ofqctl.training.objective import Objective

DEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def distilled():
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **DEIT)


def teacher_of(model):
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Teacher(copy.deepcopy(model), config, config, "self")


def heads(model, images):
    features = model.forward_features(images)
    return model.head(features[:, 0]), model.head_dist(features[:, 1])


def batch_of(images):
    return Batch(images, LABELS, torch.arange(len(images)))


class Wrapped(nn.Module):
    """As many processes wrap a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(images)


def test_with_a_teacher_each_head_has_a_target_of_its_own(distilled, images):
    objective = Objective(distilled, Training(distillation=Distillation()), teacher_of(distilled), amp=False)
    loss, _ = objective(Wrapped(distilled).train(), batch_of(images), 0, 0.0)
    with torch.no_grad():
        class_head, other = heads(distilled, images)
        answers = ((class_head + other) / 2).softmax(1)
        expected = F.cross_entropy(class_head, LABELS) - (answers * other.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_a_teacher_the_mean_of_the_heads_is_trained_as_it_is_evaluated(distilled, images):
    Objective(distilled, Training(distillation=Distillation()), teacher_of(distilled), amp=False)
    loss, _ = Objective(distilled, Training(), None, amp=False)(distilled.train(), batch_of(images), 0, 0.0)
    with torch.no_grad():
        expected = F.cross_entropy(distilled.eval()(images), LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_evaluation_has_the_mean_of_the_heads_in_the_model_and_its_copies(distilled, images):
    Objective(distilled, Training(distillation=Distillation()), teacher_of(distilled), amp=False)
    with torch.no_grad():
        mean = torch.stack(heads(distilled, images)).mean(0)
        for model in (distilled, copy.deepcopy(distilled)):
            torch.testing.assert_close(model.eval()(images), mean)


def test_images_count_as_right_by_the_mean_of_the_heads(distilled, images):
    with torch.no_grad():
        distilled.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
        distilled.head_dist.bias.copy_(torch.tensor([0.0, 99.0, 0.0]))
    objective = Objective(distilled, Training(distillation=Distillation()), teacher_of(distilled), amp=False)
    assert objective(distilled.train(), batch_of(images), 0, 0.0)[1] == 1


@pytest.mark.parametrize(
    ("architecture", "separate"),
    [("repvit_m0_9", True), ("levit_128s", True), ("efficientformer_l1", True), ("pit_ti_224", False)],
)
def test_every_family_with_a_distillation_head_gives_it_apart(architecture, separate):
    model = timm.create_model(architecture, num_classes=3)
    Objective(model, Training(distillation=Distillation()), teacher_of(nn.Identity()), amp=False)
    size = model.pretrained_cfg["input_size"]
    with torch.no_grad():
        assert isinstance(model.train()(torch.randn(2, *size)), tuple) is separate
