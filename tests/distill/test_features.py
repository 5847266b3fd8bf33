import copy

import pytest
import timm
import torch
from torch import nn

from ofqctl.distill import FeatureDistillation
from ofqctl.errors import ModelError, RecipeError
from ofqctl.recipe.training import Features


def record(features, student, teacher, images):
    with features.watching():
        teacher(images)
        student(images)
    return features.loss(None)


def test_a_student_that_equals_its_teacher_loses_nothing(tiny_vit, images):
    features = FeatureDistillation(copy.deepcopy(tiny_vit), tiny_vit, Features())
    student, teacher = features._models
    assert record(features, student, teacher, images).item() == 0.0


def test_loss_is_the_squared_error_over_the_variance_of_the_teacher(tiny_vit, images):
    student = copy.deepcopy(tiny_vit)
    with torch.no_grad():
        student.patch_embed.proj.weight.mul_(1.5)
    outputs = {}
    for name, model in (("student", student), ("teacher", tiny_vit)):
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        outputs[name] = []
        for block in model.blocks:
            x = block(x)
            outputs[name].append(x)
    pairs = zip(outputs["student"], outputs["teacher"], strict=True)
    expected = sum(((s - t) ** 2).mean() / t.var(correction=0) for s, t in pairs) / len(tiny_vit.blocks)
    features = FeatureDistillation(student, tiny_vit, Features(weight=3.0))
    torch.testing.assert_close(record(features, student, tiny_vit, images), 3.0 * expected)


def test_gradients_reach_the_student_and_not_the_teacher(tiny_vit, images):
    student = copy.deepcopy(tiny_vit)
    with torch.no_grad():
        student.patch_embed.proj.weight.mul_(1.5)
    tiny_vit.requires_grad_(False)
    features = FeatureDistillation(student, tiny_vit, Features())
    record(features, student, tiny_vit, images).backward()
    assert student.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert tiny_vit.blocks[0].attn.qkv.weight.grad is None


def test_no_hook_stays_behind(tiny_vit, images):
    student = copy.deepcopy(tiny_vit)
    record(FeatureDistillation(student, tiny_vit, Features()), student, tiny_vit, images)
    assert not any(module._forward_hooks for model in (student, tiny_vit) for module in model.modules())


def test_a_star_does_not_go_past_a_dot(tiny_vit):
    features = FeatureDistillation(copy.deepcopy(tiny_vit), tiny_vit, Features(target="blocks.*"))
    assert features.names == [f"blocks.{i}" for i in range(len(tiny_vit.blocks))]


def test_a_pattern_that_matches_nothing_is_refused(tiny_vit):
    with pytest.raises(RecipeError, match=r"'stages\.\*': matches no module"):
        FeatureDistillation(copy.deepcopy(tiny_vit), tiny_vit, Features(target="stages.*"))


def test_a_teacher_without_the_modules_is_refused(tiny_vit):
    with pytest.raises(RecipeError, match=r"the teacher has no 'blocks\.0'"):
        FeatureDistillation(tiny_vit, nn.Identity(), Features(target="blocks.*"))


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("vit_tiny_patch16_224", ["blocks.0", "blocks.1", "blocks.11"]),
        ("swin_tiny_patch4_window7_224", ["layers.0.blocks.0", "layers.0.blocks.1", "layers.3.blocks.1"]),
        ("cait_xxs24_224", ["blocks.0", "blocks.1", "blocks_token_only.1"]),
        (
            "maxvit_nano_rw_256",
            ["stages.0.blocks.0.attn_block", "stages.0.blocks.0.attn_grid", "stages.3.blocks.0.attn_grid"],
        ),
    ],
)
def test_without_a_pattern_the_blocks_are_those_that_hold_an_attention(model, blocks):
    with torch.device("meta"):
        made = timm.create_model(model, pretrained=False)
    names = FeatureDistillation(made, made, Features()).names
    assert [*names[:2], names[-1]] == blocks
    assert len(names) == len(set(names))


def test_blocks_that_the_student_lacks_are_refused(tiny_vit):
    with pytest.raises(RecipeError, match=r"the student has no 'blocks\.0'"):
        FeatureDistillation(nn.Identity(), tiny_vit, Features())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(RecipeError, match="target null: matches no module"):
        FeatureDistillation(nn.Identity(), nn.Identity(), Features())


def test_modules_that_do_not_give_out_alike_are_refused(tiny_vit, images):
    narrow = copy.deepcopy(tiny_vit)
    narrow.head = nn.Linear(narrow.head.in_features, 3)
    features = FeatureDistillation(narrow, tiny_vit, Features(target="head"))
    with pytest.raises(ModelError, match="head: the outputs of student and teacher"):
        record(features, narrow, tiny_vit, images)
