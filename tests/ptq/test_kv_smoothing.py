"""Keys and values whose channels are alike: exact, against the formula, and refused with a reason."""

import copy

import pytest
import timm
import torch
from torch import nn

from ofqctl.convert import make_plan
from ofqctl.progress import silent
from ofqctl.ptq import Task
from ofqctl.ptq.kv_smoothing import KVSmoothing, smooth
from ofqctl.recipe.catalogue import load

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def lively(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **{**SMALL, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(len(module.weight), 1) * 3 + 0.1)  # channels of unlike sizes
    return model


def smoothed(model: nn.Module, *assignments: str, **settings) -> Task:
    """The model is changed in place."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()))
    task = Task(model, model, make_plan(model, load("ptq/mse", assignments), (3, 32, 32)), images.split(4), silent)
    smooth(task, KVSmoothing(**settings))
    return task


def heads_in(model: nn.Module) -> torch.Tensor:
    """Queries, keys and values of the second block, (3, H, rows, d), of the images that it was smoothed on."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()))
    seen = []
    with model.blocks[1].attn.qkv.register_forward_hook(lambda _m, _a, output: seen.append(output)), torch.no_grad():
        model(images)
    return seen[0].flatten(0, 1).view(-1, 3, 3, 16).permute(1, 2, 0, 3)


@pytest.mark.parametrize("settings", [{}, {"share": 1.0}, {"shift": False}])
def test_the_float_model_computes_the_same(settings):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = lively().to(dtype)
        images = torch.randn(3, 3, 32, 32, dtype=dtype)
        with torch.no_grad():
            before = model(images)
            task = smoothed(model, **settings)
            assert (model(images) - before).abs().max() <= tolerance * before.abs().max()
        assert task.notes == []
        assert task.figures["kv_smoothing"] == dict.fromkeys(("keys", "values"), ("blocks.0.attn", "blocks.1.attn"))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_queries_keys_and_values_are_those_of_the_formula(share):
    model = lively().double()
    query, key, value = heads_in(model)
    weights = model.blocks[1].attn.proj.weight.detach().abs().amax(0).view(3, 1, 16)
    smoothed(model, share=share)
    for found, own, other in ((1, key, query.std(1, unbiased=False)[:, None]), (2, value, weights)):
        scale = own.std(1, keepdim=True, unbiased=False) ** share / other ** (1 - share)
        scale = scale / scale.log().mean(2, keepdim=True).exp()
        after = heads_in(model)
        assert torch.allclose(after[found], (own - own.mean(1, keepdim=True)) / scale, atol=1e-9)
        if found == 1:
            assert torch.allclose(after[0], query * scale, atol=1e-9)


def test_all_channels_of_keys_and_values_are_alike_where_the_other_side_takes_over_everything():
    model = lively()
    before = heads_in(model)
    smoothed(model, share=1.0)
    after = heads_in(model)
    for part in (1, 2):
        spread = after[part].std(1)
        assert torch.allclose(spread, spread.mean(1, keepdim=True).expand_as(spread), rtol=1e-3)
        assert (before[part].std(1).amax(1) / before[part].std(1).amin(1) > 2).all()


def test_channels_that_are_always_zero_stay():
    model = lively()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[50] = 0.0
        model.blocks[0].attn.qkv.bias[50] = 0.0
        images = torch.randn(2, 3, 32, 32)
        before = model(images)
        smoothed(model)
        assert torch.allclose(model(images), before, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize(
    ("model", "assignments", "reason", "values"),
    [
        (("vit_tiny_patch16_224", {}), ("attention.qkr=true",), "query and key are merged", 2),
        (("vit_tiny_patch16_224", {"qk_norm": True}), (), "query and key are normalized", 2),
        (("eva02_tiny_patch14_224", {}), (), "rotary embedding", 0),
    ],
)
def test_what_cannot_be_smoothed_exactly_stays_and_the_reason_is_told(model, assignments, reason, values):
    name, kwargs = model
    float_model = lively(name, **kwargs)
    before = copy.deepcopy(float_model.state_dict())
    task = smoothed(float_model, *assignments)
    assert any(note.startswith("kv_smoothing: keys of blocks.0.attn, blocks.1.attn") for note in task.notes)
    assert any(reason in note for note in task.notes)
    assert len(task.figures["kv_smoothing"]["values"]) == values
    unchanged = [torch.equal(tensor, before[key]) for key, tensor in float_model.state_dict().items()]
    assert all(unchanged) == (values == 0)


def test_without_a_bias_only_the_size_changes():
    model = lively(qkv_bias=False)
    before = heads_in(model)
    smoothed(model, share=1.0)
    ratio = heads_in(model)[1] / before[1]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-2)
