"""Confident codes stay, at every step; everything else is trained."""

import copy

import pytest
import torch
from torch import nn

from ofqctl.artifact.tensors import to_tensors
from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.oscillation import OscillationTracker, distance_to_threshold
from ofqctl.quantizers import Quantizer, StatsQ
from ofqctl.remedies import CGA, ConfidentFreezing

RANGE = 0.005
QK = "blocks.0.attn.products.qk"


def cga(model, boundary_range=RANGE, target=("*",)):
    """Of all layers unless told otherwise."""
    return ConfidentFreezing(model, CGA(boundary_range=boundary_range, target=target), steps=1)


def look(model, boundary_range=RANGE):
    """Codes, latent weights and confidence of every weight, by the definition: no threshold within the range."""
    found = {}
    for name, site in weight_sites(model):
        encoded, latent = site.encode_weight(), site.latent().detach().clone()
        position = latent / encoded.step - encoded.grid.points(torch.zeros(()))
        confident = torch.ones_like(latent, dtype=torch.bool)
        for code in range(encoded.grid.range.low, encoded.grid.range.high):
            confident &= (position - (code + 0.5)).abs() > boundary_range
        found[name] = encoded.codes, latent, confident
    return found


def broken(before, after):
    """How many confident codes differ."""
    return sum(int(((after[name][0] != codes) & confident).sum()) for name, (codes, _, confident) in before.items())


def anneal(model, backward, optimizer, remedy, steps=8):
    """Train with ``remedy`` (or None) and count the confident codes that changed on the way."""
    count = 0
    for step in range(steps):
        backward(model, step)
        before = look(model)
        if remedy is not None:
            remedy.before_step()
        optimizer.step()
        if remedy is not None:
            remedy.after_step()
        count += broken(before, look(model))
    return count


def adamw(model, lr):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)


def test_distance_is_that_to_the_nearest_threshold_inside_the_grid(quantized):
    for _, site in weight_sites(quantized()):
        encoded, latent = site.encode_weight(), site.latent().detach()
        thresholds = torch.arange(encoded.grid.range.low, encoded.grid.range.high) + 0.5
        position = latent / encoded.step - encoded.grid.points(torch.zeros(()))
        expected = (position.unsqueeze(-1) - thresholds).abs().amin(-1)
        torch.testing.assert_close(distance_to_threshold(latent, encoded), expected)


@pytest.mark.parametrize("lr", [1e-5, 1e-3])
@pytest.mark.parametrize(
    "recipe", [("ofq/vit_w2a2",), ("ofq/vit_w2a2", "weights.bits=8"), ("statsq",), ("lsq",), ("ptq/minmax",)]
)
def test_no_confident_code_changes(quantized, backward, recipe, lr):
    model = quantized(*recipe)
    assert anneal(model, backward, adamw(model, lr), cga(model)) == 0


def test_momentum_from_the_time_before_moves_no_confident_code(quantized, backward):
    model = quantized()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.05)
    assert anneal(model, backward, optimizer, None) > 0  # without CGA confident codes do change
    assert anneal(model, backward, optimizer, cga(model)) == 0


def test_confident_weights_keep_their_value_and_the_others_move(quantized, backward):
    model = quantized()
    remedy, optimizer = cga(model), adamw(model, 1e-5)
    for step in range(3):
        backward(model, step)
        before = look(model)
        remedy.before_step()
        for name, site in weight_sites(model):
            if isinstance(site.latent(), nn.Parameter):
                assert bool((site.weight.grad[before[name][2]] == 0).all())
        optimizer.step()
        remedy.after_step()
        for name, site in weight_sites(model):
            _, latent, confident = before[name]
            now = site.latent().detach()
            if isinstance(site.weight_quantizer, StatsQ):
                assert 0.9 < confident.float().mean() < 1
                rounding = 0.0 if name.endswith(("proj.weight", "fc1.weight", "fc2.weight")) else 1e-6
                torch.testing.assert_close(now[confident], latent[confident], rtol=rounding, atol=rounding)
                assert bool((now != latent)[~confident].all())


def test_a_learned_step_goes_back_where_a_confident_code_would_change_with_it(quantized, backward):
    model = quantized()
    remedy, optimizer = cga(model), adamw(model, 1e-3)
    backward(model, 0)
    codes, latent, confident = look(model)["head.weight"]
    step = model.head.weight_quantizer.step.detach().clone()
    remedy.before_step()
    optimizer.step()
    uncarried = model.head.weight_quantizer.encode(latent).codes
    remedy.after_step()
    now = model.head.encode_weight()
    assert torch.equal(now.codes[confident], codes[confident])
    rows = ((uncarried != codes) & confident).any(1)
    assert bool(rows.any())  # without that the guarantee would not hold
    assert torch.equal(now.step[rows], step[rows])
    assert bool((model.head.weight != latent)[rows][~confident[rows]].all())  # the others go on training


def test_rows_of_many_bits_do_not_drift_with_their_learned_step(quantized, backward):
    model = quantized("lsq", "weights.bits=8")
    remedy, optimizer = cga(model), adamw(model, 1e-3)
    before = {name: site.quantized_weight().detach() for name, site in weight_sites(model)}
    for step in range(20):
        backward(model, step)
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
    for name, site in weight_sites(model):
        moved = (site.quantized_weight().detach() - before[name]).norm() / before[name].norm()
        assert moved < 0.02, name


def test_only_unconfident_entries_of_the_product_reach_the_projections(quantized, backward, monkeypatch):
    model = quantized()
    site = model.get_submodule(QK)
    with monkeypatch.context() as patch:
        leaf = site.latent().detach().requires_grad_()
        patch.setattr(site, "latent", lambda: leaf)
        backward(model, 0)
    _, _, confident = look(model, 0.1)[f"{QK}.weight"]
    expected = torch.autograd.grad(site.latent(), (site.q, site.k), leaf.grad.masked_fill(confident, 0.0))
    tracker = OscillationTracker(model, samples=200)
    remedy = cga(model, 0.1)
    backward(model, 0)
    remedy.before_step()
    torch.testing.assert_close((site.q.grad, site.k.grad), expected)
    tracker.update()
    found = tracker.trajectory(f"{QK}.weight")
    held = confident.flatten()[found.entries]
    assert bool((found.gradient[0][held] == 0).all())  # the tracker sees what is left of the gradient
    assert bool((found.gradient[0][~held] != 0).any())


def test_closing_lets_all_gradients_through_and_leaves_the_weights_alone(quantized, backward):
    model = quantized()
    backward(model, 0)
    free = model.get_submodule(QK).q.grad.clone()
    remedy = cga(model)
    backward(model, 0)
    assert not torch.equal(model.get_submodule(QK).q.grad, free)
    remedy.close()
    backward(model, 0)
    assert torch.equal(model.get_submodule(QK).q.grad, free)
    assert not any(site.weight_quantizer._forward_pre_hooks for _, site in weight_sites(model))
    before = look(model)
    remedy.after_step()
    assert all(torch.equal(before[name][1], latent) for name, (_, latent, _) in look(model).items())


def test_the_correction_is_in_the_state_once_something_was_held_and_comes_back(quantized, backward, images):
    model = quantized()
    plain, fresh = {k: t.clone() for k, t in model.state_dict().items()}, copy.deepcopy(model)
    assert f"{QK}.correction" not in plain
    remedy = cga(model)
    held = model.state_dict().keys()
    assert f"{QK}.correction" in held
    anneal(model, backward, adamw(model, 1e-3), remedy, steps=2)
    assert model.state_dict().keys() == held  # from the first step to the last
    assert bool((model.get_submodule(QK).correction != 0).any())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(images), model.eval()(images))
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images), model(images))
    fresh.load_state_dict(plain)
    assert fresh.get_submodule(QK).correction is None


def test_a_run_on_disk_holds_codes_and_no_correction(quantized, backward):
    model = quantized()
    names = to_tensors(model).keys()
    remedy = cga(model)
    anneal(model, backward, adamw(model, 1e-3), remedy, steps=2)
    assert to_tensors(model).keys() == names


def test_a_change_of_the_correction_is_seen_in_evaluation(quantized):
    model = quantized().eval()
    cga(model)
    site = model.get_submodule(QK)
    with torch.no_grad():
        before = site.quantized_weight()
        site.correction.add_(0.1)
        assert torch.equal(site.quantized_weight(), site.encode_weight().decode())
        assert not torch.equal(site.quantized_weight(), before)


def test_the_codes_that_are_held_are_those_that_autocast_computes_with(quantized):
    model = quantized()
    cga(model)
    for _, site in weight_sites(model):
        with torch.autocast("cpu", torch.bfloat16):
            value = site.quantized_weight().float()
        encoded = site.encode_weight()
        assert torch.equal((value / encoded.step - encoded.grid.points(torch.zeros(()))).round(), encoded.codes.float())


def test_weights_that_are_not_trained_are_left_alone(quantized, backward):
    model = quantized()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    before = look(model)
    anneal(model, backward, adamw(model.head, 1e-3), cga(model), steps=2)
    assert all(torch.equal(latent, before[n][1]) for n, (_, latent, _) in look(model).items() if n != "head.weight")


def moved_codes(model, backward, remedy, steps=8):
    """Names of the modules in which a confident code changed within some steps with a large learning rate."""
    optimizer, moved = adamw(model, 1e-3), set()
    for step in range(steps):
        backward(model, step)
        before = look(model)
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
        now = look(model)
        moved |= {name.removesuffix(".weight") for name in before if broken({name: before[name]}, now)}
    return moved


@pytest.mark.parametrize(
    "target", [None, ("blocks.*",), ("blocks.*.attn.*", "blocks.*.mlp.fc?"), ("*.attn.*", "*.mlp.*")]
)
def test_the_layers_of_the_blocks_are_held_and_the_first_and_the_last_train_on(quantized, backward, target):
    model = quantized()
    assert moved_codes(model, backward, cga(model, target=target)) == {"patch_embed.proj", "head"}


def test_a_layer_that_is_no_target_takes_the_steps_it_takes_without_annealing(quantized, backward):
    model = quantized()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("head", "patch_embed")))
    free = copy.deepcopy(model)
    anneal(model, backward, adamw(model, 1e-3), cga(model, target=None), steps=3)
    anneal(free, backward, adamw(free, 1e-3), None, steps=3)
    held, plain = model.state_dict(), free.state_dict()
    for name in plain:
        if name.startswith(("head", "patch_embed")):
            assert torch.equal(held[name], plain[name]), name


def test_a_product_that_is_no_target_gets_no_correction_and_all_of_its_gradient(quantized):
    model = quantized()
    cga(model, target=("*.mlp.*",))
    assert model.get_submodule(QK).correction is None
    assert not model.get_submodule(QK).weight_quantizer._forward_pre_hooks


def test_a_pattern_that_matches_nothing_is_told_with_the_name_that_is_nearest(quantized):
    with pytest.raises(RecipeError, match=r"cga\.target: 'blocks.0.mlp.fc3' matches no module") as told:
        cga(quantized(), target=("head", "blocks.0.mlp.fc3"))
    assert told.value.hint in ("did you mean 'blocks.0.mlp.fc1'?", "did you mean 'blocks.0.mlp.fc2'?")


def test_where_no_weight_has_few_bits_annealing_must_be_told_what_to_hold(quantized):
    with pytest.raises(RecipeError, match="fewer than 8 bits are held, but the model has none") as told:
        cga(quantized("ofq/vit_w2a2", "weights.bits=8"), target=None)
    assert "cga: {target: ['*']}" in told.value.hint


def test_each_weight_is_encoded_twice_in_an_optimizer_step_of_several_micro_batches(quantized, backward, monkeypatch):
    model = quantized()
    remedy, optimizer = cga(model), adamw(model, 1e-5)
    weights, encoded = {site.weight_quantizer for _, site in weight_sites(model)}, []
    for kind in (StatsQ, Quantizer):
        plain = kind.encode
        monkeypatch.setattr(kind, "encode", lambda self, x, plain=plain: encoded.append(self) or plain(self, x))
    backward(model, 0)
    backward(model, 1)
    remedy.before_step()
    optimizer.step()
    remedy.after_step()
    assert sorted(map(id, encoded)) == sorted(map(id, [*weights, *weights]))
