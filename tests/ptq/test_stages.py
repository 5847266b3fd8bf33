"""The stages of post-training quantization: how each lowers the error, and what holds for all of them."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofqctl.artifact import serialize
from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.ptq import Clock
from ofqctl.ptq.evolq import EvolQ, distance, split
from ofqctl.ptq.replay import Replay

ERQ = {"stage": "erq"}
RECONSTRUCT = {"stage": "reconstruct", "iterations": 60, "batch_size": 8}
EVOLVE = {"stage": "evolq", "passes": 2, "loss": "kl"}
FOLD = {"stage": "layer_norm"}
SOFTMAX = {"stage": "softmax"}
EVERY = (FOLD, SOFTMAX, ERQ, {**RECONSTRUCT, "iterations": 10}, EVOLVE)


TRAINED = ["lsq", "statsq", "ofq/vit_w4a4"]


@pytest.mark.parametrize("stage", [ERQ, RECONSTRUCT], ids=lambda stage: stage["stage"])
def test_the_error_on_unseen_images_is_less_than_after_rounding(quantized, stage):
    assert quantized(stage).error < 0.8 * quantized().error


def test_reconstruction_brings_a_model_nearer_on_batches_of_one_image(quantized):
    assert quantized({**RECONSTRUCT, "batch_size": 1, "views": 1}).error < 0.95 * quantized().error


def test_reconstruction_of_a_single_image_changes_the_model(quantized, calibration_images):
    one = calibration_images[:1]
    stage = {**RECONSTRUCT, "iterations": 20, "views": 1}
    assert quantized(stage, images=one).error != quantized(images=one).error


def test_reconstruction_changes_a_model_that_is_sure_of_every_answer(lively_vit, quantized):
    with torch.no_grad():
        lively_vit.head.weight.mul_(1e6)
    stage = {**RECONSTRUCT, "iterations": 10, "views": 1}
    before, after = (quantized(*stages).model.blocks[0].mlp.fc1.weight for stages in ((), (stage,)))
    assert not torch.equal(after, before)


@pytest.mark.slow
def test_reconstruction_brings_models_of_8_bits_nearer_too(quantized):
    whole = ("weights.bits=8", "activations.bits=8")
    assert quantized(RECONSTRUCT, assignments=whole).error < quantized(assignments=whole).error


def test_channels_of_unlike_ranges_cost_less_once_they_are_folded(quantized):
    whole = ("activations.granularity=tensor", "activations.range=minmax", "weights.bits=8")
    assert quantized(FOLD, assignments=whole).error < 0.8 * quantized(assignments=whole).error


@pytest.mark.parametrize("base", ["ptq/mse", pytest.param("ofq/vit_w4a4", marks=pytest.mark.slow)])
def test_weights_narrower_than_their_inputs_take_no_ranges_of_a_layer_norm(quantized, base):
    four = ("weights.bits=4", "last.weights.bits=4")
    for bits, folded in ((4, True), (5, False)):
        assignments = (*four, f"activations.bits={bits}", f"last.activations.bits={bits}")
        plain = quantized(base=base, assignments=assignments).error
        assert (quantized({**FOLD, "narrower": False}, base=base, assignments=assignments).error != plain) == folded
        assert quantized(FOLD, base=base, assignments=assignments).error != plain


@pytest.mark.parametrize("base", ["ptq/mse", *(pytest.param(b, marks=pytest.mark.slow) for b in TRAINED)])
def test_every_stage_runs_with_every_quantizer(quantized, base):
    result = quantized(*EVERY, base=base)
    assert torch.isfinite(torch.tensor(result.error))
    assert not any(t.requires_grad for n, t in result.model.named_buffers())


@pytest.mark.slow
def test_the_same_images_and_seed_give_the_same_bytes(quantized):
    assert serialize(quantized(*EVERY).model) == serialize(quantized(*EVERY).model)


def test_weights_are_on_the_grid_they_are_stored_on(quantized, calibration_images):
    model = quantized(ERQ).model
    layer = model.blocks[0].mlp.fc1
    assert torch.equal(layer.encode_weight().decode(), layer.weight)


def test_a_time_budget_ends_a_reconstruction_and_is_reported(quantized):
    began = time.monotonic()
    result = quantized({**RECONSTRUCT, "iterations": 100_000}, clock=Clock(2.0))
    assert time.monotonic() - began < 30
    assert any("time budget" in note for note in result.task.notes)


@pytest.mark.parametrize("stage", [ERQ, EVOLVE, RECONSTRUCT], ids=lambda stage: stage["stage"])
def test_a_time_budget_that_is_over_leaves_the_calibrated_model(quantized, stage):
    result = quantized(stage, clock=Clock(1e-9))
    assert result.error == pytest.approx(quantized().error)
    assert any("time budget" in note for note in result.task.notes)


def test_evolution_never_keeps_what_is_worse_on_held_out_images(quantized):
    curve = quantized(EVOLVE).task.figures["evolq"]
    assert curve["searched"] == sorted(curve["searched"], reverse=True)
    assert len(curve["held_out"]) == 3


@pytest.mark.parametrize("loss", ["infonce", "mse", "cosine", "kl"])
def test_evolution_knows_each_loss(quantized, loss):
    curve = quantized({**EVOLVE, "passes": 1, "loss": loss}).task.figures["evolq"]
    assert curve["searched"][-1] <= curve["searched"][0]


def test_evolution_finds_the_same_with_every_block_computed_anew(quantized, monkeypatch):
    found = quantized(EVOLVE).task.figures["evolq"]
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda replay, index, _replayed=0: run(replay, index))
    assert quantized(EVOLVE).task.figures["evolq"] == found


def test_the_divergence_is_that_of_predictions_at_the_temperature():
    ours, theirs = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    settings = EvolQ(loss="kl", temperature=2.0)
    p, q = ((logits / 2.0).softmax(1) for logits in (theirs, ours))
    wanted = 4.0 * float((p * (p / q).log()).sum(1).mean())
    assert float(distance(ours, theirs, settings)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("base", ["ptq/mse", "lsq", "statsq", "ofq/vit_w4a4"])
def test_evolution_holds_every_code_and_scales_all_steps_of_a_weight_alike(quantized, base):
    before, after = (
        dict(weight_sites(quantized(*stages, base=base).model)) for stages in ((), ({**EVOLVE, "passes": 3},))
    )
    factors = []
    for name, site in after.items():
        start, found = before[name].encode_weight(), site.encode_weight()
        assert torch.equal(found.codes, start.codes), name
        ratio = (found.step / start.step).flatten()
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-5), name
        factors.append(float(ratio[0]))
    assert any(abs(factor - 1.0) > 1e-4 for factor in factors)


def test_evolution_can_search_each_step_by_itself(quantized):
    before, after = (
        quantized(*stages).model.blocks[1].mlp.fc1.encode_weight().step
        for stages in ((), ({**EVOLVE, "passes": 3, "granularity": "channel", "held_out": 0.5},))
    )
    assert len((after / before).unique()) > 10


@pytest.mark.slow
def test_evolution_searches_images_that_nothing_was_fitted_to_and_reports_if_there_are_none(quantized):
    some = quantized({**RECONSTRUCT, "iterations": 10, "share": 1 / 3}, EVOLVE)
    assert some.task.fitted == 8
    assert not some.task.notes
    none = quantized({**RECONSTRUCT, "iterations": 10}, EVOLVE)
    assert any("fitted to 24 of the 24 calibration images" in note for note in none.task.notes)


@pytest.mark.parametrize(("images", "held_out"), [(4, 2), (17, 4), (33, 8), (49, 12), (65, 16)])
def test_evolution_compares_held_out_images_with_each_other_however_many_there_are(quantized, images, held_out):
    drawn = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    curve = quantized({**EVOLVE, "loss": "infonce", "cycles": 2}, images=drawn).task.figures["evolq"]
    assert min(curve["held_out"]) > 0.1  # the contrast of an image with itself alone is 0, and no pass is below
    assert len(set(curve["held_out"])) == 3
    assert curve["images"] == {"searched": images - held_out, "held_out": held_out}


@given(st.integers(4, 2000), st.floats(0.01, 0.99))
def test_images_are_held_out_as_asked_and_none_is_compared_with_itself_alone(images, share):
    searched, held_out = split(images, share)
    assert sum(searched) + sum(held_out) == images
    assert sum(held_out) == min(max(2, round(share * images)), images - 2)
    for sizes in (searched, held_out):
        assert min(sizes) >= 2
        assert max(sizes) <= 16
        assert max(sizes) - min(sizes) <= 1


def test_evolution_refuses_images_too_few_to_compare(quantized, calibration_images):
    with pytest.raises(RecipeError, match="at least 4"):
        quantized(EVOLVE, images=calibration_images[:3])
