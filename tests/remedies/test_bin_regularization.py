"""The penalty is the one of the paper, its gradient too; weights of a bin get alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.grids import CodeRange, Encoded, symmetric_grid
from ofqctl.layers import weight_sites
from ofqctl.remedies.bin_regularization import BinPenalty, BinRegularization, _spread
from ofqctl.remedies.dampening import to_centres

FULL = BinRegularization(start=1.0, end=1.0, delay=0.0)


def by_definition(site, latent):
    """One tensor, code by code, as the paper writes it: squared distances, and a variance for each code."""
    encoded = site.encode_weight()
    points = encoded.grid.points(encoded.grid.range.all()) * encoded.step.reshape(-1, 1)
    shape = (-1, *[1] * (latent.dim() - 1)) if encoded.step.numel() > 1 else ()
    low, high = (end.reshape(shape) for end in (points[:, 0], points[:, -1]))
    clipped = torch.minimum(torch.maximum(latent, low), high)
    loss = (encoded.decode() - clipped).square().mean()
    for code in encoded.grid.range.all():
        members = (clipped / encoded.step)[encoded.codes == code]
        if len(members) > 1:
            loss = loss + members.var() * encoded.step.square().mean()
    return loss


@pytest.mark.parametrize("recipe", [("lsq",), ("lsq", "weights.granularity=tensor"), ("statsq",)])
def test_penalty_and_gradients_are_those_of_the_definition(quantized, recipe):
    model = quantized(*recipe)
    BinPenalty(model, FULL, steps=10).penalty().backward()
    low = {name: site for name, site in weight_sites(model) if name.startswith("blocks")}
    total = 0.0
    for name, site in low.items():
        latent = site.weight.detach().clone().requires_grad_()
        loss = by_definition(site, latent)
        loss.backward()
        torch.testing.assert_close(site.weight.grad, latent.grad, rtol=1e-5, atol=1e-8, msg=name)
        total += loss.item()
    assert BinPenalty(model, FULL, steps=10).penalty().item() == pytest.approx(total, rel=1e-5)
    assert model.head.weight.grad is None  # 8 bits
    assert all(getattr(site.weight_quantizer, "step", torch.ones(())).grad is None for site in low.values())


@given(st.lists(st.integers(-2, 1), min_size=1, max_size=30), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_spread_is_the_sum_of_variances_for_any_codes(codes, seed):
    codes = torch.tensor(codes, dtype=torch.int8)
    away = torch.rand(len(codes), generator=torch.Generator().manual_seed(seed)) - 0.5
    bits = CodeRange.of_bits(2, signed=True)
    found = _spread(away, Encoded(codes, torch.ones(1), symmetric_grid(bits)))
    groups = [away[codes == code] for code in bits.all()]
    torch.testing.assert_close(found, sum((g.var() for g in groups if len(g) > 1), torch.zeros(())))


def test_weights_of_a_bin_get_alike(quantized):
    model = quantized("lsq")
    remedy = BinPenalty(model, FULL, steps=50)
    site = model.blocks[0].mlp.fc1

    def spread():
        away, encoded = to_centres(site, site.weight.detach())
        return float(_spread(away / encoded.step, encoded))

    before, optimizer = spread(), torch.optim.SGD(model.parameters(), lr=20.0)
    for _ in range(50):
        optimizer.zero_grad()
        remedy.penalty().backward()
        optimizer.step()
        remedy.after_step()
    assert spread() < 0.5 * before


def test_the_merged_product_passes_its_gradient_to_both_projections(quantized):
    model = quantized("ofq/vit_w2a2")
    BinPenalty(model, FULL, steps=1).penalty().backward()
    site = model.blocks[0].attn.products.qk
    assert bool((site.q.grad != 0).any()) and bool((site.k.grad != 0).any())


def test_the_strength_rises_as_published(quantized):
    model = quantized("lsq")
    remedy = BinPenalty(model, BinRegularization(), steps=101)
    full = BinPenalty(model, FULL, steps=101).penalty().item()
    for step in range(101):
        tau = (step - 26) / 74
        expected = 0.0 if tau <= 0 else 0.005 * (1 - torch.cos(torch.tensor(torch.pi * tau)).item()) * full
        found = remedy.penalty()
        assert (0.0 if found is None else found.item()) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        remedy.after_step()


def test_a_model_with_weights_of_8_bits_alone_is_refused(quantized):
    with pytest.raises(RecipeError, match="bin_regularization: acts on weights of fewer than 8 bits") as told:
        BinPenalty.check(quantized("lsq", "weights.bits=8"), BinRegularization())
    assert "weights.bits" in told.value.hint
