"""The smallest model of every timm family that holds attention: convert, run, differentiate, save, reload."""

import copy
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ofqctl.artifact.run import serialize
from ofqctl.artifact.tensors import from_tensors
from ofqctl.convert import apply_plan, describe
from ofqctl.ptq import calibrate
from ofqctl.recipe import Plan

_SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "generate_coverage.py"
_SPEC = importlib.util.spec_from_file_location("generate_coverage", _SCRIPT)
coverage = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = coverage
_SPEC.loader.exec_module(coverage)

LARGE = ("beit", "deepseek_vit", "gemma4_vit", "naflexvit", "qwen3_vit")  # all their blocks are alike: 2 will do
SUBJECTS = {
    subject.family: replace(subject, depth=2) if subject.family in LARGE else subject for subject in coverage.subjects()
}
MUST_BE_QUANTIZED = {
    "Attention": ("vision_transformer", "deit", "pit", "mobilevit", "vitamin", "naflexvit", "beit"),
    "WindowAttention": ("swin_transformer", "swin_transformer_v2"),
    "EvaAttention": ("eva",),
    "AttentionRope": ("qwen3_vit", "deepseek_vit"),
    "RelPosAttention": ("vision_transformer_relpos",),
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", SUBJECTS)
def test_the_smallest_model_converts_runs_trains_and_reloads_with_equal_outputs(family):
    subject = SUBJECTS[family]
    model, other = subject.build(), subject.build(seed=1)
    trainable = _with_gradient(copy.deepcopy(model), subject.images(model, 2))
    plans = coverage.converted(subject).plans
    for name in coverage.RECIPES:
        _check(subject, plans[name], copy.deepcopy(model), copy.deepcopy(other), trainable)


def _check(subject, plan: Plan, model: nn.Module, other: nn.Module, trainable: set[str]) -> None:
    images = subject.images(model, 4)
    apply_plan(model, plan)
    calibrate(model, plan, [subject.images(model, 2, seed=1)])
    plan = describe(model, plan)
    pairs = [_outputs(model, images[:2]), _outputs(model, images[2:])]
    assert all(bool(tensor.isfinite().all()) for pair in pairs for tensor in pair)

    apply_plan(other, Plan.model_validate_json(plan.model_dump_json()))
    from_tensors(other, safetensors.torch.load(serialize(model)), subject.architecture)
    for ours, theirs in zip(pairs[0], _outputs(other.eval(), images[:2]), strict=True):
        assert torch.equal(ours, theirs)

    assert _batch_gap(model, images, pairs) <= 1e-5
    _check_gradients(model, images[:2], trainable)


def _batch_gap(model: nn.Module, images: Tensor, pairs: list[list[Tensor]]) -> float:
    """Smallest over the images: what changes, relative to the largest value, if an image runs without its neighbour.

    Float sums depend on the batch size in their last bits; where that moves a value over a rounding boundary, one
    image's outputs differ visibly, but not every image's.
    """
    gaps = []
    for i in range(len(images)):
        alone = _outputs(model, images[i : i + 1])
        beside = [tensor[i % 2 : i % 2 + 1] for tensor in pairs[i // 2]]
        gaps.append(
            max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(alone, beside, strict=True))
        )
        if gaps[-1] <= 1e-5:
            break
    return min(gaps)


def _check_gradients(model: nn.Module, images: Tensor, trainable: set[str]) -> None:
    """What had a gradient in the float model has one here, and all are finite."""
    got = _with_gradient(model, images)
    parameters = dict(model.named_parameters())
    for block in {name.partition(".products.")[0] for name in parameters if name.endswith(".products.qk.q")}:
        trainable = {name for name in trainable if not name.startswith(f"{block}.qkv.")}
        trainable |= {f"{block}.products.{own}" for own in ("qk.q", "qk.k", "v_proj.weight")}
    assert not trainable - got
    assert all(bool(p.grad.isfinite().all()) for p in parameters.values() if p.grad is not None)


def _with_gradient(model: nn.Module, images: Tensor) -> set[str]:
    """Names of the parameters that get a gradient in training mode."""
    torch.manual_seed(0)
    model.train()
    sum((out * torch.randn_like(out)).sum() for out in _flat(model(images))).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return list(_flat(model(images)))


def _flat(value: object) -> Iterator[Tensor]:
    """Every tensor that a model returns."""
    if isinstance(value, Tensor):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _flat(item)


def test_products_are_quantized_in_the_families_that_were_promised():
    products = {family: coverage.row(subject).products for family, subject in SUBJECTS.items()}
    assert sum(bool(classes) for classes in products.values()) >= 20
    for name, promised in MUST_BE_QUANTIZED.items():
        assert all(products[family].get(name) for family in promised), name


def test_the_page_is_up_to_date():
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.page()
