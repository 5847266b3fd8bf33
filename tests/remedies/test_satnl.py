"""The optimizer moves what is under the tanh; everything else sees weights."""

import pytest
import torch

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.remedies.satnl import SatNL, SaturatingWeights


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)


def test_steps_are_those_of_a_model_whose_weights_are_a_tanh_of_parameters(quantized):
    model = quantized("lsq")
    remedy, optimizer = SaturatingWeights(model, SatNL(bound=1.1), steps=5), adamw(model.parameters())
    sites = dict(weight_sites(model))
    bounds = {name: 1.1 * site.weight.detach().abs().max() for name, site in sites.items()}
    under = {n: (bounds[n] * torch.atanh(s.weight.detach() / bounds[n])).requires_grad_() for n, s in sites.items()}
    bias = model.head.bias.detach().clone().requires_grad_()
    plain = adamw([*under.values(), bias])
    for _ in range(5):
        optimizer.zero_grad()
        for name, site in sites.items():
            site.weight.grad = torch.randn(site.weight.shape)
            (bounds[name] * torch.tanh(under[name] / bounds[name])).backward(site.weight.grad)
        model.head.bias.grad = bias.grad = torch.randn(bias.shape)
        remedy.step(optimizer.step)
        plain.step()
        plain.zero_grad()
        for name, site in sites.items():
            expected = bounds[name] * torch.tanh(under[name].detach() / bounds[name])
            torch.testing.assert_close(site.weight.detach(), expected, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(model.head.bias.detach(), bias.detach())


def test_no_weight_outgrows_its_bound_and_gradients_are_what_they_were(quantized):
    model = quantized("lsq")
    largest = {name: site.weight.detach().abs().max() for name, site in weight_sites(model)}
    remedy, optimizer = SaturatingWeights(model, SatNL(), steps=9), torch.optim.SGD(model.parameters(), lr=10.0)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        remedy.step(optimizer.step)
    for name, site in weight_sites(model):
        assert float(site.weight.detach().abs().max()) <= 1.25 * float(largest[name]) * (1 + 1e-6)
        assert bool(torch.isfinite(site.weight).all())
        assert torch.equal(site.weight.grad, torch.ones_like(site.weight))


def test_weights_that_do_not_move_stay_to_the_bit_if_untrained_and_nearly_so_if_trained(quantized):
    model = quantized("lsq")
    before = {name: site.weight.detach().clone() for name, site in weight_sites(model)}
    remedy = SaturatingWeights(model, SatNL(), steps=1)
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    remedy.step(lambda: None)
    for name, site in weight_sites(model):
        if name == "head.weight":
            torch.testing.assert_close(site.weight.detach(), before[name], rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(site.weight, before[name])


def test_the_state_holds_the_bounds_of_the_start_of_the_phase(quantized):
    model = quantized("lsq")
    remedy = SaturatingWeights(model, SatNL(), steps=1)
    model.head.weight.data.mul_(3.0)
    again = SaturatingWeights(model, SatNL(), steps=1)
    assert again.state_dict()["head.weight"] != remedy.state_dict()["head.weight"]
    again.load_state_dict(remedy.state_dict())
    assert again.state_dict() == remedy.state_dict()


def test_a_merged_product_is_refused_with_the_reason(quantized):
    with pytest.raises(RecipeError, match="is the product of query and key projections") as told:
        SaturatingWeights.check(quantized("ofq/vit_w2a2"), SatNL())
    assert "attention.qkr=false" in told.value.hint
