"""The figures of a training step, float beside quantized."""

from dataclasses import replace

import pytest

from ofqctl.jobs.bench_step import BenchStepRequest, bench_step
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.results.run import Bits

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FLOAT = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recipe", ["statsq", "ofq/vit_w2a2"])
def test_times_and_memory_of_both_and_their_ratios(recipe, bf16):
    told = []
    request = BenchStepRequest(FLOAT, load(recipe), batch_size=2, device="cpu", bf16=bf16, steps=3, fused=False)
    result = bench_step(request, lambda *step: told.append(step))
    assert told[-1] == ("steps", 3, 3)
    for figures in (result.float, result.quantized, result.tracked):
        assert 0 < figures.seconds_min <= figures.seconds_median
        assert figures.peak_bytes > 0
    for key, ratio in result.ratio:
        assert ratio == pytest.approx(getattr(result.quantized, key) / getattr(result.float, key))
    for key, ratio in result.tracker.ratio:
        assert ratio == pytest.approx(getattr(result.tracked, key) / getattr(result.quantized, key))
    assert result.tracker.bytes_per_weight == 6.0
    assert result.tracker.weights > 50_000
    assert result.bits == Bits(weights=2, activations=2)


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("lsq", ["training.phases.0.asam={}"]),
        (
            "lsq",
            [
                "training.distillation={features: {}}",
                "training.augmentation.crops=2",
                "training.augmentation.mixup=0.5",
            ],
        ),
        ("ofq/vit_w2a2", []),
    ],
)
def test_the_step_of_the_recipe_has_all_that_belongs_to_it(recipe, sets):
    request = BenchStepRequest(FLOAT, load(recipe, sets), batch_size=4, device="cpu", steps=2, fused=False)
    result = bench_step(request)
    assert 0 < result.whole.seconds_min <= result.whole.seconds_median
    for key, ratio in result.whole_ratio:
        assert ratio == pytest.approx(getattr(result.whole, key) / getattr(result.float, key))


def test_two_passes_and_a_teacher_take_longer():
    wide = replace(FLOAT, kwargs=TINY | {"embed_dim": 192, "depth": 4})
    sets = ["training.phases.0.asam={}", "training.distillation={}"]
    result = bench_step(BenchStepRequest(wide, load("lsq", sets), batch_size=8, device="cpu", steps=3, fused=False))
    assert result.whole.seconds_min > 1.5 * result.quantized.seconds_min


@pytest.mark.parametrize("recipe", ["ptq/minmax", "ofq/backbone_w4a4"])
def test_a_recipe_that_trains_no_classifier_has_no_step_of_its_own(recipe):
    result = bench_step(BenchStepRequest(FLOAT, load(recipe), batch_size=2, device="cpu", steps=1, fused=False))
    assert result.whole is result.whole_ratio is None
    assert any("its own step is not measured" in note for note in result.notes) == (recipe == "ofq/backbone_w4a4")


def test_memory_does_not_depend_on_the_number_of_steps():
    peaks = [
        bench_step(BenchStepRequest(FLOAT, load("statsq"), batch_size=4, device="cpu", steps=steps, fused=False))
        for steps in (1, 3)
    ]
    assert peaks[0].quantized.peak_bytes == pytest.approx(peaks[1].quantized.peak_bytes, rel=0.01)
