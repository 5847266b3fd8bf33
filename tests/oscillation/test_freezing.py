"""Weights that oscillate too often keep their code for good; everything else is trained."""

import copy

import pytest
import torch

from ofqctl.artifact.tensors import to_tensors
from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.oscillation import Freezing, IterativeFreezing
from ofqctl.recipe.catalogue import load

QK = "blocks.0.attn.products.qk"
EAGER = Freezing(start=1e-6, end=1e-6, delay=0.25, momentum=0.1)  # freezes at the first flip back


def codes(model):
    return {name: site.encode_weight().codes.clone() for name, site in weight_sites(model)}


def frozen(model):
    return {name: site.weight_quantizer.frozen.clone() for name, site in weight_sites(model)}


def shake(model, backward, remedy, steps, lr=3e-2, first=0):
    """Train with steps so large that codes flip to and fro; yields codes and frozen marks after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.05)
    for step in range(first, first + steps):
        backward(model, step)
        if step % 2:
            for parameter in model.parameters():
                parameter.grad.neg_()
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
        yield codes(model), frozen(model)


@pytest.mark.parametrize("recipe", [("lsq",), ("statsq",), ("ofq/vit_w2a2",), ("statsq", "weights.bits=4")])
def test_a_frozen_code_never_changes_again(quantized, backward, recipe):
    model = quantized(*recipe)
    remedy = IterativeFreezing(model, EAGER, steps=16)
    before = None
    for step, now in enumerate(shake(model, backward, remedy, 16)):
        if before is not None:
            for name, held in before[1].items():
                assert torch.equal(now[0][name][held], before[0][name][held]), (step, name)
                assert bool(now[1][name][held].all())  # for good
        before = now
    low_bits = [name for name in before[1] if name.startswith("blocks")]
    assert sum(int(before[1][name].sum()) for name in low_bits) > 0
    assert not all(bool(held.all()) for held in before[1].values())


def test_nothing_is_frozen_ahead_of_the_delay(quantized, backward):
    model = quantized("lsq")
    remedy = IterativeFreezing(model, EAGER, steps=16)
    shares = [sum(int(held.sum()) for held in held_now.values()) for _, held_now in shake(model, backward, remedy, 8)]
    assert shares[:4] == [0, 0, 0, 0]
    assert shares[-1] > 0


class Oracle:
    """One weight by Algorithm 1 of Nagel et al., in plain Python: when is it frozen, and at which code."""

    def __init__(self, code, momentum):
        self.code, self.direction, self.frequency, self.average, self.momentum = code, 0, 0.0, float(code), momentum

    def step(self, code):
        direction = (code > self.code) - (code < self.code)
        oscillates = direction != 0 and direction == -self.direction
        self.frequency = self.momentum * oscillates + (1 - self.momentum) * self.frequency
        self.average = self.momentum * code + (1 - self.momentum) * self.average
        self.direction = direction or self.direction
        self.code = code
        between = sorted((code, code - self.direction))
        return min(max(round(self.average), between[0]), between[1])


def test_weights_are_frozen_when_and_where_a_plain_loop_says(quantized, monkeypatch):
    """LSQ weights that walk at random; the remedy's marks and codes against one oracle a weight."""
    model = quantized("lsq")
    site = model.blocks[0].mlp.fc1
    settings = Freezing(start=0.15, end=0.05, delay=0.0, momentum=0.1)
    remedy = IterativeFreezing(model, settings, steps=40)
    rows = slice(0, 4)
    oracles = [Oracle(code, 0.1) for code in site.encode_weight().codes[rows].flatten().tolist()]
    fixed: dict[int, int] = {}
    random = torch.Generator().manual_seed(3)
    for step in range(40):
        remedy.before_step()
        with torch.no_grad():
            noise = torch.randn(site.weight.shape, generator=random)
            site.weight.add_(0.8 * noise * site.weight_quantizer.step * (-1) ** step)
        walked = site.encode_weight().codes[rows].flatten().tolist()
        remedy.after_step()
        limit = 0.05 + (0.15 - 0.05) * (1 + torch.cos(torch.tensor(torch.pi * step / 39)).item()) / 2
        for number, (oracle, code) in enumerate(zip(oracles, walked, strict=True)):
            settled = oracle.step(fixed.get(number, code))
            if number not in fixed and oracle.frequency > limit:
                fixed[number] = settled
        now = site.encode_weight().codes[rows].flatten().tolist()
        marks = site.weight_quantizer.frozen[rows].flatten().nonzero().flatten().tolist()
        assert marks == sorted(fixed), step
        assert {number: now[number] for number in fixed} == fixed
    assert 20 < len(fixed) < len(oracles)


def test_a_later_phase_holds_what_an_earlier_one_froze(quantized, backward):
    model = quantized("ofq/vit_w2a2")
    first = IterativeFreezing(model, EAGER, steps=16)
    *_, (held_codes, held) = shake(model, backward, first, 16, lr=0.1)
    first.close()
    second = IterativeFreezing(model, Freezing(start=1.0, end=1.0, delay=0.0), steps=4)
    for now, marks in shake(model, backward, second, 4, lr=0.1, first=16):
        for name, entries in held.items():
            assert torch.equal(now[name][entries], held_codes[name][entries])
            assert torch.equal(marks[name], entries)
    assert bool(held[f"{QK}.weight"].any())


def test_marks_are_in_the_state_and_come_back_and_are_not_in_a_run(quantized, backward):
    model = quantized("ofq/vit_w2a2")
    names, fresh = to_tensors(model).keys(), copy.deepcopy(model)
    remedy = IterativeFreezing(model, EAGER, steps=8)
    list(shake(model, backward, remedy, 8))
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(one, frozen(model)[name]) for name, one in frozen(fresh).items())
    assert to_tensors(model).keys() == names
    fresh.load_state_dict({k: t for k, t in model.state_dict().items() if not k.endswith(".frozen")})
    assert all(site.weight_quantizer.frozen is None for _, site in weight_sites(fresh))


def test_a_remedy_that_was_saved_and_read_goes_on_as_one_that_was_not(quantized, backward):
    model = quantized("ofq/vit_w2a2")
    remedy = IterativeFreezing(model, EAGER, steps=12)
    list(shake(model, backward, remedy, 5))
    other = copy.deepcopy(model)
    for _, site in weight_sites(other):  # a copy has the hooks of the remedy it was copied with
        site.weight_quantizer._forward_pre_hooks.clear()
    again = IterativeFreezing(other, EAGER, steps=12)
    again.load_state_dict(remedy.state_dict())
    list(shake(model, backward, remedy, 5, first=5))
    list(shake(other, backward, again, 5, first=5))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    for key, tensor in remedy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_freezing_shares_no_phase_with_cga_and_no_training_with_averages():
    freezing = "training.phases.0.freezing={}"
    with pytest.raises(RecipeError, match="cga and freezing each decide"):
        load("demo/digits_ofq_w2a2", ["training.phases.1.freezing={}"])
    with pytest.raises(RecipeError, match="codes that freezing freezes"):
        load("lsq", [freezing, "training.ema=0.99"])
    assert load("lsq", [freezing]).training.phases[0].freezing == Freezing()
