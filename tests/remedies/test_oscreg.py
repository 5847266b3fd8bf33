"""The penalty moves weights from their levels to the thresholds, with the gradient of the paper."""

import pytest
import torch

from ofqctl.errors import RecipeError
from ofqctl.remedies.oscreg import OscillationPenalty, OscReg


def test_penalty_and_gradient_are_those_of_the_paper(tiny_vit):
    OscillationPenalty(tiny_vit, OscReg(weight=0.7, bits=3), 1).penalty().backward()
    total = 0.0
    for module in tiny_vit.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            w = module.weight.detach().double()
            step = w.abs().max() / 3
            rounded = torch.round(w / step) * step
            total += float((rounded**2 - w**2).mean())
            wanted = 2 * 0.7 / w.numel() * (rounded - w)
            torch.testing.assert_close(module.weight.grad.double(), wanted, rtol=1e-5, atol=1e-9)
    found = OscillationPenalty(tiny_vit, OscReg(weight=0.7, bits=3), 1).penalty()
    assert found.item() == pytest.approx(0.7 * total, rel=1e-4)


def test_descent_moves_weights_from_levels_to_thresholds():
    layer = torch.nn.Linear(8, 8)
    held = layer.weight.detach().abs().max()
    remedy = OscillationPenalty(layer, OscReg(weight=1.0), 1)

    def distance():
        position = (layer.weight.detach() / (held / 3)).flatten()
        return float((position - position.floor() - 0.5).abs().mean())

    before = distance()
    for _ in range(5):
        layer.zero_grad()
        remedy.penalty().backward()
        with torch.no_grad():
            layer.weight -= 2.0 * layer.weight.grad
    assert distance() < before


def test_quantized_weights_are_refused(quantized):
    with pytest.raises(RecipeError, match="is quantized"):
        OscillationPenalty.check(quantized("lsq"), OscReg())
