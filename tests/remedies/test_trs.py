"""Each layer's learning rate is that of the formula, and the codes that change come to their target."""

import copy
import math

import pytest
import torch

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.remedies.trs import TRS, TransitionRates

QK = "blocks.0.attn.products.qk"


def begun(model, optimizer, settings=None, steps=10):
    remedy = TransitionRates(model, settings or TRS(), steps)
    remedy.begin(optimizer)
    return remedy


def codes_of(model):
    return {name: site.encode_weight().codes for name, site in weight_sites(model) if name.startswith("blocks")}


def rates_of(remedy, what="lr"):
    state = remedy.state_dict()
    return {key.removesuffix(f".{what}"): float(value) for key, value in state.items() if key.endswith(f".{what}")}


@pytest.mark.parametrize("recipe", ["lsq", "ofq/vit_w2a2"])
def test_a_step_is_the_optimizers_with_a_learning_rate_for_each_layer(quantized, backward, recipe):
    model = quantized(recipe)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    remedy = begun(model, optimizer)
    own = {name: 1e-3 * (number + 1) for number, name in enumerate(codes_of(model))}
    state = remedy.state_dict()
    remedy.load_state_dict(state | {f"{name}.lr": torch.tensor(lr) for name, lr in own.items()})
    groups, fixed = [], set()
    for name, site in weight_sites(plain):
        if name in own:
            groups.append({"params": site.latent_parameters(), "lr": own[name]})
            fixed |= set(site.weight_quantizer.parameters())
    used = {p for group in groups for p in group["params"]} | fixed
    groups.append({"params": [p for p in plain.parameters() if p not in used]})
    plainly = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05)
    for called, taken in ((model, optimizer), (plain, plainly)):
        backward(called, 0)
        if called is model:
            remedy.before_step()
        taken.step()
    for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-6, msg=name)


def test_rates_follow_the_formula_step_by_step(quantized, backward):
    model = quantized("lsq", "weights.bits=3")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    remedy = begun(model, optimizer, TRS(rate=0.02, momentum=0.8, gain=2.0), steps=6)
    root = math.sqrt(3)
    lr, average, before = {}, {}, codes_of(model)
    for name in before:
        lr[name], average[name] = 3e-3, 0.02 * root
    for step in range(6):
        backward(model, step)
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
        target = root * 0.02 * (1 + math.cos(math.pi * step / 5)) / 2
        now = codes_of(model)
        for name, codes in now.items():
            share = float((codes != before[name]).double().mean())
            average[name] = 0.8 * average[name] + 0.2 * share
            lr[name] = max(0.0, lr[name] + 2.0 * 3e-3 * (target - average[name]))
        before = now
        assert rates_of(remedy) == pytest.approx(lr, rel=1e-5, abs=1e-9)
        assert rates_of(remedy, "average") == pytest.approx(average, rel=1e-5)
    assert len({round(value, 6) for value in lr.values()}) > 3  # layers differ


def test_the_share_of_codes_that_change_comes_to_its_target(quantized):
    model = quantized("lsq")
    site, generator = model.blocks[0].mlp.fc1, torch.Generator().manual_seed(3)
    for start in (1e-5, 1e-2):  # below and above what is needed
        optimizer = torch.optim.SGD(model.parameters(), lr=start)
        remedy = begun(model, optimizer, TRS(rate=0.02, momentum=0.9, gain=0.006 / start), steps=10**6)
        shares = []
        for _ in range(300):
            before = site.encode_weight().codes
            site.weight.grad = torch.randn(site.weight.shape, generator=generator)
            remedy.before_step()
            optimizer.step()
            remedy.after_step()
            shares.append(float((site.encode_weight().codes != before).float().mean()))
        assert sum(shares[-150:]) / 150 == pytest.approx(0.02 * math.sqrt(2), rel=0.2)
        remedy.close()


def test_grid_steps_stay_and_layers_of_8_bits_are_left_to_the_schedule(quantized, backward):
    model = quantized("lsq")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    remedy = begun(model, optimizer)
    steps = {name: site.weight_quantizer.step.detach().clone() for name, site in weight_sites(model)}
    backward(model, 0)
    remedy.before_step()
    optimizer.step()
    changed = {n for n, site in weight_sites(model) if not torch.equal(steps[n], site.weight_quantizer.step)}
    assert changed == {"patch_embed.proj.weight", "head.weight"}
    assert rates_of(remedy).keys() == codes_of(model).keys()


def test_groups_are_as_before_once_the_phase_is_over(quantized):
    model = quantized("ofq/vit_w2a2")
    named = [{"params": list(model.parameters()), "param_names": [name for name, _ in model.named_parameters()]}]
    optimizer = torch.optim.AdamW(named, lr=1e-3)
    names = set(optimizer.param_groups[0]["param_names"])
    remedy = begun(model, optimizer)
    assert len(optimizer.param_groups) == 1 + len(codes_of(model))
    projections = next(g for g in optimizer.param_groups if f"{QK}.q" in g["param_names"])
    assert projections["param_names"] == [f"{QK}.q", f"{QK}.k"]
    remedy.close()
    (group,) = optimizer.param_groups
    assert set(group["param_names"]) == names
    parameters = dict(model.named_parameters())
    assert all(parameters[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))


def test_weights_that_are_not_trained_keep_out(quantized):
    model = quantized("lsq")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("blocks.1"))
    remedy = begun(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(name.startswith("blocks.1") for name in rates_of(remedy))
    assert rates_of(remedy)


def test_a_model_with_weights_of_8_bits_alone_is_refused(quantized):
    with pytest.raises(RecipeError, match="trs: acts on weights of fewer than 8 bits"):
        TransitionRates.check(quantized("lsq", "weights.bits=8"), TRS())
