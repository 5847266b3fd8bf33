"""The loss has the norms of gradients in it, and so have all gradients, whatever is quantized."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, reference, without
from ofqctl.remedies.gradient_l1 import GradientL1, GradientNorms

BOTH = GradientL1(weights=0.3, activations=0.2)


def plain_round(x, quantizer):
    """Straight-through rounding by LSQ in plain autograd, without the gradient of the step."""
    step, low, high = quantizer.step.detach(), quantizer.range.low, quantizer.range.high
    inside = ((x / step >= low) & (x / step <= high)).detach()
    passed = torch.where(inside, x, torch.zeros(()))
    return passed + ((x / step).round().clamp(low, high) * step - passed).detach()


def compute(model, remedy, images):
    """A step's gradients as the engine computes them; the value that was differentiated."""
    model.zero_grad()
    values = []

    def run():
        loss = F.cross_entropy(model(images), torch.arange(len(images)) % 10)
        wanted = remedy.objective(loss)
        wanted.backward()
        values.append(float(wanted.detach()))
        return loss.detach()

    remedy.gradients(run)
    return values[0]


@pytest.fixture
def mlp(quantized):
    """The multilayer perceptron of a block, on tokens."""
    return quantized("lsq").blocks[0].mlp


def test_a_step_is_that_of_the_definition_in_plain_autograd(mlp):
    x = torch.randn(2, 17, 48, requires_grad=True)
    remedy = GradientNorms(mlp, BOTH, steps=1)
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    found = {}

    def run():
        loss = mlp(x).square().mean()
        total = remedy.objective(loss)
        gradients = torch.autograd.grad(total, [mlp.get_parameter(name) for name in names])
        found.update(zip(names, gradients, strict=True), total=total.detach())
        return loss

    remedy.gradients(run)
    first, second = mlp.fc1, mlp.fc2
    w1, w2 = first.weight, second.weight
    into = x * 1.0
    hidden = F.gelu(F.linear(plain_round(into, first.input), plain_round(w1, first.weight_quantizer), first.bias))
    out = F.linear(plain_round(hidden, second.input), plain_round(w2, second.weight_quantizer), second.bias)
    loss = out.square().mean()
    of_w1, of_w2, of_in, of_hidden = torch.autograd.grad(loss, (w1, w2, into, hidden), create_graph=True)
    total = loss + 0.3 * (of_w1.abs().sum() + of_w2.abs().sum()) + 0.2 * (of_in.abs().sum() + of_hidden.abs().sum())
    expected = torch.autograd.grad(total, [mlp.get_parameter(name) for name in names])
    torch.testing.assert_close(found["total"], total.detach(), rtol=1e-5, atol=0.0)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("recipe", [("lsq",), ("ofq/vit_w2a2",), ("lsq", "activations.dynamic=true")])
def test_fake_quantization_can_be_differentiated_twice_as_plain_autograd(quantized, images, recipe, monkeypatch):
    model = quantized(*recipe)
    plain = copy.deepcopy(model)
    total = compute(model, GradientNorms(model, BOTH, steps=1), images)

    def forward(self, x):
        if not hasattr(self, "step"):
            return Quantizer.forward(self, x)
        rows, largest = self.relative(x)
        value = reference.fake_quantize(rows, self.step, self.grid, self.before, self.after, self.passes)
        return value if largest is None else value * largest

    for module in plain.modules():
        if isinstance(module, Quantizer) and isinstance(getattr(module, "step", None), nn.Parameter):
            monkeypatch.setattr(module, "forward", forward.__get__(module))
    assert total == pytest.approx(compute(plain, GradientNorms(plain, BOTH, steps=1), images), rel=1e-5)
    quantizers = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        allowed = 2e-3 if id(found) in quantizers else 1e-5  # distances to codes are kept to 12 bits
        error, size = float((found.grad - expected.grad).norm()), float(expected.grad.norm())
        assert error < allowed * size + 1e-5, name


def test_of_float_weights_and_activations_too(quantized, images):
    model = quantized("lsq", "attention.products=false")  # timm's own attention
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    remedy = GradientNorms(model, GradientL1(weights=0.3, activations=0.0), steps=1)
    with without(quantizers):
        found = compute(model, remedy, images)
        loss = F.cross_entropy(model(images), torch.arange(len(images)) % 10)
        gradients = torch.autograd.grad(loss, [site.weight for _, site in weight_sites(model)])
    assert found == pytest.approx(float(loss.detach()) + 0.3 * sum(float(g.abs().sum()) for g in gradients), rel=1e-5)


def test_gradients_get_smaller(quantized, images):
    model = quantized("lsq")
    remedy = GradientNorms(model, GradientL1(weights=0.5, activations=0.5), steps=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def norm():
        loss = F.cross_entropy(model(images), torch.arange(len(images)) % 10)
        return float(sum(g.abs().sum() for g in torch.autograd.grad(loss, [s.weight for _, s in weight_sites(model)])))

    before = norm()
    for _ in range(10):
        compute(model, remedy, images)
        optimizer.step()
    assert norm() < 0.8 * before


def test_nothing_is_added_during_the_delay_and_no_hook_stays(quantized, images):
    model = quantized("lsq")
    remedy = GradientNorms(model, GradientL1(delay=0.5), steps=2)
    plain = float(F.cross_entropy(model(images), torch.arange(len(images)) % 10).detach())
    assert compute(model, remedy, images) == pytest.approx(plain)
    remedy.after_step()
    again = GradientNorms(model, GradientL1(delay=0.5), steps=2)
    again.load_state_dict(remedy.state_dict())
    assert compute(model, again, images) > plain
    assert not any(module._forward_pre_hooks for module in model.modules())
