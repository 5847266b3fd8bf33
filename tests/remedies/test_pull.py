"""Weights move by their share, at their time; gradients are those at weights with noise."""

import copy

import pytest
import torch

from ofqctl.layers import weight_sites
from ofqctl.remedies.moving import moved
from ofqctl.remedies.pull import Pull, PullToCodes

QK = "blocks.0.attn.products.qk"
AT_ONCE = {"delay": 0.0, "times_lr": False}


def values(model):
    return {name: site.latent().detach().clone() for name, site in weight_sites(model)}


def quantized_by_definition(latent, quantizer):
    """Round to nearest on the grid of LSQ with a step a row."""
    step = quantizer.step.detach()
    return (latent / step).round().clamp(quantizer.range.low, quantizer.range.high) * step


def take(model, backward, remedy, optimizer, number=0):
    remedy.gradients(lambda: backward(model, number))
    remedy.before_step()
    optimizer.step()
    remedy.after_step()


def test_a_step_is_the_optimizers_and_then_the_published_pull(quantized, backward):
    model = quantized("lsq")
    plain, lr = copy.deepcopy(model), 0.05
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=lr) for m in (model, plain))
    remedy = PullToCodes(model, Pull(start=4.0, end=4.0, delay=0.0), steps=10)
    remedy.begin(optimizer)
    take(model, backward, remedy, optimizer)
    backward(plain, 0)
    other.step()
    found = values(model)
    for name, site in weight_sites(plain):
        latent = site.weight.detach()
        expected = latent - lr * 4.0 * (latent - quantized_by_definition(latent, site.weight_quantizer))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(found[name], latent)


def test_the_pull_of_cage_starts_late_and_grows_linearly(quantized):
    remedy = PullToCodes(quantized("lsq"), Pull(), steps=101)
    remedy.begin(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0))
    strengths = []
    for _ in range(101):
        strengths.append(remedy.strength)
        remedy.after_step()
    assert strengths[:81] == [None] * 81
    assert strengths[81:] == pytest.approx([10.0 * k / 19 for k in range(20)])


def test_winq_pulls_after_every_so_many_steps_and_not_between(quantized):
    model = quantized("lsq")
    remedy = PullToCodes(model, Pull(start=0.3, end=0.3, every=0.25, **AT_ONCE), steps=12)
    site = model.blocks[0].mlp.fc1
    for step in range(1, 13):
        before = site.weight.detach().clone()
        value = quantized_by_definition(before, site.weight_quantizer)
        remedy.after_step()
        expected = 0.7 * before + 0.3 * value if step % 3 == 0 else before
        torch.testing.assert_close(site.weight.detach(), expected, rtol=1e-5, atol=1e-8)


def test_gradients_are_those_at_weights_with_noise_which_then_are_what_they_were(quantized, backward):
    model = quantized("lsq")
    before, shifted = copy.deepcopy(model), copy.deepcopy(model)
    remedy = PullToCodes(model, Pull(noise=0.02), steps=10)
    seen = {}

    def compute():
        seen.update(values(model))
        backward(model, 0)

    remedy.gradients(compute)
    for (name, site), (_, old) in zip(weight_sites(model), weight_sites(before), strict=True):
        assert torch.equal(site.weight, old.weight)
        noise = seen[name] - old.weight.detach()
        assert float(noise.std()) == pytest.approx(0.02, rel=0.1)
    for name, site in weight_sites(shifted):
        site.weight.data.copy_(seen[name])
    backward(shifted, 0)
    for (name, parameter), (_, expected) in zip(model.named_parameters(), shifted.named_parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-8, msg=name)
    again = PullToCodes(model, Pull(noise=0.02), steps=10)
    noises = []
    for _ in range(2):
        again.gradients(lambda: noises.append(values(model)["head.weight"]))
        again.after_step()
    assert torch.equal(noises[0], seen["head.weight"])  # of the step's number alone
    assert not torch.equal(noises[0], noises[1])


def test_weights_are_put_back_when_gradients_cannot_be_computed():
    weight = torch.nn.Parameter(torch.rand(3))
    before = weight.detach().clone()
    with pytest.raises(MemoryError), moved({weight: torch.ones(3)}):
        assert torch.equal(weight, before + 1)
        raise MemoryError
    assert torch.equal(weight, before)


def test_the_merged_product_moves_by_the_share(quantized):
    model = quantized("ofq/vit_w2a2")
    settings = Pull(start=0.5, end=0.5, **AT_ONCE)
    PullToCodes.prepare(model, settings)
    site = model.get_submodule(QK)
    before, value = site.latent().detach(), site.encode_weight().decode()
    PullToCodes(model, settings, steps=1).after_step()
    torch.testing.assert_close(site.latent().detach(), (before + value) / 2, rtol=1e-5, atol=1e-6)


def test_preparing_a_product_changes_no_weight(quantized):
    model = quantized("ofq/vit_w2a2")
    before = values(model)
    PullToCodes.prepare(model, Pull())
    assert all(torch.equal(before[name], value) for name, value in values(model).items())
    assert f"{QK}.correction" in model.state_dict()


def test_weights_that_are_not_trained_stay(quantized):
    model = quantized("ofq/vit_w2a2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    before = values(model)
    remedy = PullToCodes(model, Pull(start=0.5, end=0.5, noise=0.1, **AT_ONCE), steps=1)
    remedy.gradients(
        lambda: [torch.equal(before[n], value) or n == "head.weight" for n, value in values(model).items()]
    )
    remedy.after_step()
    changed = {name for name, value in values(model).items() if not torch.equal(before[name], value)}
    assert changed == {"head.weight"}


def test_the_state_is_the_number_of_steps(quantized):
    model = quantized("lsq")
    settings = Pull(end=1.0, delay=0.0, times_lr=False)
    remedy = PullToCodes(model, settings, steps=10)
    for _ in range(3):
        remedy.after_step()
    again = PullToCodes(model, settings, steps=10)
    again.load_state_dict(remedy.state_dict())
    assert again.strength == remedy.strength > 0
