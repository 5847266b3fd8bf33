"""How far outputs are apart, by what they are."""

import pytest
import timm
import torch
from scipy.stats import entropy

from ofqctl.ptq.divergence import divergence, measure_of, own_loss
from tests.conftest import TINY


def test_what_a_model_gives_decides_what_its_outputs_are_compared_by(tiny_vit):
    assert measure_of(tiny_vit) == "kl"
    assert measure_of(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)) == "relative_error"


def test_classes_are_compared_as_probabilities():
    ours, theirs = torch.randn(6, 5), torch.randn(6, 5)
    wanted = [entropy(t.softmax(0), o.softmax(0)) for o, t in zip(ours, theirs, strict=True)]
    assert float(divergence(ours, theirs, "kl")) == pytest.approx(sum(wanted) / 6, rel=1e-5)


def test_embeddings_are_compared_as_vectors():
    ours, theirs = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert float(divergence(ours, theirs, "relative_error")) == pytest.approx((16 / 9 + 1) / 2)
    assert float(divergence(ours, ours, "relative_error")) == 0.0
    assert torch.isfinite(divergence(ours, torch.zeros(2, 2), "relative_error"))


def test_the_squared_gradient_of_a_models_own_loss_is_its_fisher_information():
    """Of a normal distribution of variance 1 around W x, that of W is the identity, times x x^T."""
    x, weight = torch.tensor([1.0, 2.0]), torch.randn(3, 2)
    generator, total = torch.Generator().manual_seed(0), torch.zeros(3, 2)
    for _ in range(2000):
        tried = weight.clone().requires_grad_()
        own_loss((tried @ x)[None], "relative_error", generator).backward()
        total += tried.grad.square() / 2000
    assert torch.allclose(total, x.square().expand(3, 2), rtol=0.15)
