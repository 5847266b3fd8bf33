"""The penalty is the one of the paper, its gradient too, and weights go to the middle of their bins."""

import math

import pytest
import torch

from ofqctl.layers import weight_sites
from ofqctl.oscillation import distance_to_threshold
from ofqctl.recipe.training import Training
from ofqctl.remedies import CGA, Dampening, DampeningPenalty, Freezing, remedies_of
from ofqctl.remedies.schedule import Schedule

FULL = Dampening(start=1.0, end=1.0, delay=0.0, reduction="mean")


def by_definition(model, reduction):
    """Sum over layers of the mean (or sum) of (w_q - clip(w, grid))^2, entry by entry."""
    total = 0.0
    for _, site in weight_sites(model):
        encoded, latent = site.encode_weight(), site.latent().detach()
        step, codes, offset = (
            encoded.step.expand_as(latent),
            encoded.grid.range,
            float(encoded.grid.points(torch.zeros(()))),
        )
        squares = []
        for w, s, code in zip(*(t.flatten().tolist() for t in (latent, step, encoded.codes)), strict=True):
            low, high = (s * (bound + offset) for bound in (codes.low, codes.high))
            squares.append((s * (code + offset) - min(max(w, low), high)) ** 2)
        total += sum(squares) / (len(squares) if reduction == "mean" else 1)
    return total


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("recipe", ["lsq", "statsq", "ofq/vit_w2a2"])
def test_the_penalty_is_the_sum_over_layers_by_definition(quantized, recipe, reduction):
    model = quantized(recipe)
    remedy = DampeningPenalty(model, FULL.model_copy(update={"reduction": reduction}), steps=10)
    assert remedy.penalty().item() == pytest.approx(by_definition(model, reduction), rel=1e-4)


def test_its_gradient_draws_to_the_middle_and_leaves_weights_beyond_the_grid_and_steps_alone(quantized):
    model = quantized("lsq")
    site = model.blocks[0].mlp.fc1
    DampeningPenalty(model, FULL, steps=1).penalty().backward()
    encoded = site.encode_weight()
    position = site.weight.detach() / encoded.step
    beyond = (position < encoded.grid.range.low) | (position > encoded.grid.range.high)
    middle = encoded.decode()
    expected = torch.where(beyond, 0.0, 2 * (site.weight.detach() - middle) / middle.numel())
    torch.testing.assert_close(site.weight.grad, expected)
    assert bool(beyond.any())
    assert site.weight_quantizer.step.grad is None


@pytest.mark.parametrize("recipe", ["lsq", "statsq", "ofq/vit_w2a2"])
def test_weights_move_away_from_the_thresholds(quantized, recipe):
    model = quantized(recipe)
    remedy = DampeningPenalty(model, FULL.model_copy(update={"reduction": "sum"}), steps=60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def near():
        found = [distance_to_threshold(site.latent(), site.encode_weight()) for _, site in weight_sites(model)]
        return float(torch.cat([d.flatten() for d in found]).lt(0.05).float().mean())

    before = near()
    for _ in range(60):
        optimizer.zero_grad()
        remedy.penalty().backward()
        optimizer.step()
        remedy.after_step()
    assert near() < 0.6 * before


def test_the_merged_product_passes_its_gradient_to_both_projections(quantized):
    model = quantized("ofq/vit_w2a2")
    DampeningPenalty(model, FULL, steps=1).penalty().backward()
    site = model.blocks[0].attn.products.qk
    assert bool((site.q.grad != 0).any()) and bool((site.k.grad != 0).any())


def test_the_strength_is_nothing_then_a_cosine():
    schedule = Schedule(start=0.0, end=0.1, delay=0.25, steps=100)
    assert [schedule.at(step) for step in (0, 24)] == [None, None]
    assert schedule.at(25) == 0.0
    assert schedule.at(99) == pytest.approx(0.1)
    assert schedule.at(62) == pytest.approx(0.05 - 0.05 * math.cos(math.pi * 37 / 74))
    values = [schedule.at(step) for step in range(25, 100)]
    assert values == sorted(values)
    assert Schedule(0.1, 0.01, 0.0, 1).at(0) == pytest.approx(0.1)


def test_the_penalty_follows_the_schedule_and_the_saved_step(quantized):
    model = quantized("lsq")
    settings = Dampening(end=1.0, delay=0.5)
    remedy = DampeningPenalty(model, settings, steps=10)
    for _ in range(5):
        assert remedy.penalty() is None
        remedy.after_step()
    for _ in range(3):
        remedy.after_step()
    again = DampeningPenalty(model, settings, steps=10)
    again.load_state_dict(remedy.state_dict())
    assert again.penalty().item() == remedy.penalty().item() > 0


def test_weights_that_are_not_trained_ask_for_nothing(quantized):
    model = quantized("lsq").requires_grad_(False)
    assert DampeningPenalty(model, FULL, steps=1).penalty() is None


def test_the_default_is_the_sum_as_published_since_a_mean_does_next_to_nothing(quantized):
    """One weight of many: with the mean its gradient is divided by their number."""
    model = quantized("lsq")
    assert Dampening().reduction == "sum"
    site = model.blocks[0].mlp.fc1
    DampeningPenalty(model, Dampening(start=0.1, end=0.1, delay=0.0), steps=1).penalty().backward()
    encoded = site.encode_weight()
    position = site.weight.detach() / encoded.step
    inside = (position > encoded.grid.range.low) & (position < encoded.grid.range.high)
    expected = 2 * 0.1 * (site.weight.detach() - encoded.decode())
    torch.testing.assert_close(site.weight.grad[inside], expected[inside])


def test_a_phase_makes_its_remedies(quantized):
    model = quantized("lsq")

    def names(**settings):
        return [type(remedy).__name__ for remedy in remedies_of(Training(phases=({**settings},)).phases[0], model, 10)]

    assert names() == []
    assert names(cga=CGA(), dampening=FULL) == ["ConfidentFreezing", "DampeningPenalty"]
    assert names(freezing=Freezing(), dampening=FULL) == ["IterativeFreezing", "DampeningPenalty"]
