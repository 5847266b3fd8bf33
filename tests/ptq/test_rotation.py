"""Rotations of heads and of the residual stream: exact, spread, kept in runs, and refused with a reason."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ofqctl.convert import apply_plan, make_plan
from ofqctl.progress import silent
from ofqctl.ptq import Task
from ofqctl.ptq.rotation import Rotation, rotate, rotation_of
from ofqctl.recipe import Plan
from ofqctl.recipe.catalogue import load

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
EXACT = {
    "vit_tiny_patch16_224": SMALL,
    "deit_small_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL | {"init_values": 0.1},
    "vit_small_patch14_dinov2": SMALL | {"init_values": 0.1},
}
HEADS, RESIDUAL = {"residual": False}, {"heads": False, "residual": True}


def lively(name: str, kwargs: dict) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rotated(model: nn.Module, settings: dict, *assignments: str) -> Task:
    """The model is rotated in place."""
    side, dtype = model.patch_embed.img_size[0], next(model.parameters()).dtype
    plan = make_plan(model, load("ptq/mse", assignments), (3, side, side))
    task = Task(model, model, plan, [torch.randn(2, 3, side, side, dtype=dtype)], silent)
    rotate(task, Rotation(**settings))
    return task


@given(st.sampled_from([1, 12, 20, 24, 44]), st.integers(0, 4), st.integers(0, 99))
def test_a_rotation_is_orthogonal_and_all_its_entries_are_of_one_size(core, doublings, seed):
    size = core << doublings
    found = rotation_of(size, torch.Generator().manual_seed(seed))
    assert torch.allclose(found @ found.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.abs(), torch.full_like(found, size**-0.5))


@pytest.mark.parametrize("size", [3, 18, 28, 36])
def test_there_are_sizes_without_a_known_matrix(size):
    assert rotation_of(size, torch.Generator()) is None


def test_every_width_of_common_vision_transformers_can_be_rotated():
    for width in (16, 24, 32, 48, 64, 72, 80, 88, 96, 192, 384, 768, 1024, 1152, 1280, 1408):
        assert rotation_of(width, torch.Generator()) is not None, width


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("settings", [HEADS, RESIDUAL, {"residual": True}], ids=["heads", "residual", "both"])
def test_the_float_model_computes_the_same(name, settings):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = lively(name, EXACT[name]).to(dtype)
        images = torch.randn(3, 3, 32, 32, dtype=dtype)
        with torch.no_grad():
            before = model(images)
            task = rotated(model, settings)
            assert (model(images) - before).abs().max() <= tolerance
        assert task.notes == []
        assert len(task.figures["rotation"]["residual"]) == (5 if settings.get("residual") else 0)


def test_queries_keys_and_values_are_rotated_within_each_head_and_no_two_heads_alike():
    model = lively("vit_tiny_patch16_224", SMALL).double()
    before = model.blocks[1].attn.qkv.weight.detach().reshape(3, 3, 16, 48).clone()
    rotated(model, HEADS)
    after = model.blocks[1].attn.qkv.weight.detach().reshape(3, 3, 16, 48)
    turns = torch.linalg.lstsq(before.mT, after.mT).solution  # after = turn^T before
    assert torch.allclose(turns.abs(), torch.full_like(turns, 0.25), atol=1e-9)
    assert torch.allclose(turns[0], turns[1], atol=1e-9)
    assert not torch.allclose(turns[1, 0], turns[1, 1])
    assert not torch.allclose(turns[1], turns[2])


def test_the_residual_stream_is_centred_and_rotated():
    """Against the formula, x M R, with the rotation that the seed gives."""
    model = lively("vit_tiny_patch16_224", SMALL).double()
    images, seen = torch.randn(2, 3, 32, 32, dtype=torch.float64), []
    changed = copy.deepcopy(model)
    rotated(changed, RESIDUAL)
    for one in (model, changed):
        one.blocks[1].register_forward_hook(lambda _m, _a, output: seen.append(output.detach()))
        one(images)
    x, found = seen
    rotation = rotation_of(48, torch.Generator().manual_seed(0))
    assert torch.allclose(found, (x - x.mean(dim=-1, keepdim=True)) @ rotation, atol=1e-10)
    assert isinstance(changed.blocks[0].norm1, nn.RMSNorm)
    assert changed.blocks[0].norm1.eps == model.blocks[0].norm1.eps
    assert torch.equal(changed.norm.weight, torch.ones(48, dtype=torch.float64))


def test_a_plan_builds_the_rotated_model_again(images):
    model = lively("vit_tiny_patch16_224", SMALL)
    plan = rotated(model, {"residual": True}).plan
    apply_plan(model, plan)
    again = timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL).eval()
    apply_plan(again, Plan.model_validate_json(plan.model_dump_json()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("swin_tiny_patch4_window7_224", SWIN, "LayerNorms have 24, 48, 96 channels"),
        ("vit_base_patch16_rpn_224", SMALL, "what blocks.0.norm1 gives is read by more than Linear layers"),
        ("vit_base_patch16_clip_224", SMALL, "what norm_pre gives is read by more than Linear layers"),
        ("beit_base_patch16_224", SMALL, "there is no bias to take up the shift of blocks.0.norm1"),
        ("vit_base_patch16_siglip_224", SMALL, "something else than its Linear layers"),
        ("vit_tiny_patch16_224", SMALL | {"embed_dim": 36}, "no Hadamard matrix of the size 36"),
    ],
)
def test_a_residual_stream_that_cannot_be_rotated_exactly_stays_and_the_reason_is_told(name, kwargs, reason):
    model = lively(name, kwargs)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    task = rotated(model, RESIDUAL)
    assert len(task.notes) == 1
    assert reason in task.notes[0]
    assert task.plan.replaced == {}
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kwargs", "assignments", "reason", "values"),
    [
        ("vit_tiny_patch16_224", SMALL, ("attention.qkr=true",), "query and key are merged", 2),
        ("eva02_tiny_patch14_224", SMALL, (), "rotary embedding", 0),
        ("vit_tiny_patch16_224", SMALL | {"qk_norm": True}, (), "query and key are normalized", 2),
        ("vit_tiny_patch16_224", SMALL | {"embed_dim": 84}, (), "no Hadamard matrix of the size 28", 0),
        ("beit_base_patch16_224", SMALL, (), "biases are kept apart", 0),
        ("swin_tiny_patch4_window7_224", SWIN, (), None, 4),
    ],
)
def test_heads_that_cannot_be_rotated_exactly_stay_and_the_reason_is_told(name, kwargs, assignments, reason, values):
    model = lively(name, kwargs)
    images = torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"])
    with torch.no_grad():
        before = model(images)
        task = rotated(model, HEADS, *assignments)
        assert (model(images) - before).abs().max() <= 1e-5 * before.abs().max()
    figures = task.figures["rotation"]
    assert len(figures["values"]) == values
    assert len(figures["keys"]) == (values if reason is None else 0)
    assert any(reason in note for note in task.notes) if reason else not task.notes


def test_a_large_channel_is_spread_over_its_head():
    model, peaks = lively("vit_tiny_patch16_224", SMALL), []
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.view(3, 3, 16, 48)[0, :, 0] *= 10  # of queries
    model.blocks[1].attn.qkv.register_forward_hook(
        lambda _m, _a, output: peaks.append(output[..., :48].abs().amax() / output[..., :48].square().mean().sqrt())
    )
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        model(images)
        rotated(model, HEADS)
        model(images)
    assert peaks[-1] < 0.6 * peaks[0]
