"""Weights that oscillate too often keep their code for good; everything else is trained."""

import copy

import pytest
import torch
from torch import nn

from ofqctl.artifact.tensors import to_tensors
from ofqctl.errors import RecipeError
from ofqctl.layers import QuantLinear, weight_sites
from ofqctl.layers.attention.qkr import MergedQueryKey
from ofqctl.recipe import ModulePlan, quantizer_plan
from ofqctl.recipe.catalogue import load
from ofqctl.remedies import Freezing, IterativeFreezing

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
    model = quantized("ofq/vit_w2a2", "activations.bits=4")  # at 2 bits random weights attend to nothing
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
        site.weight_quantizer._forward_hooks.clear()
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


def layer(method, bits):
    """A small layer with such weights, as a model."""
    torch.manual_seed(bits)
    plan = quantizer_plan(method=method, bits=bits, step_shape=(8, 1))
    linear = QuantLinear(nn.Linear(16, 8), ModulePlan(kind="linear", weight=plan))
    return started(linear)


def merged(method, bits):
    """A small merged query-key product of two heads with such weights, as a model."""
    torch.manual_seed(bits)
    plan = quantizer_plan(method=method, bits=bits, step_shape=(2, 8, 1))
    return started(MergedQueryKey(torch.randn(8, 8), torch.randn(8, 8), 2, ModulePlan(kind="qkr", weight=plan)))


def started(site):
    site.weight_quantizer.observe(site.latent().detach())
    site.weight_quantizer.finish()
    return nn.ModuleDict({"site": site}).train()


KINDS = [(layer, "lsq", 2), (layer, "lsq", 4), (layer, "lsq", 8), (layer, "statsq", 2), (layer, "statsq", 8)]
KINDS += [(layer, "uniform", 4), (merged, "statsq", 2), (merged, "statsq", 8), (merged, "lsq", 4)]
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=0.1),
}
NEVER = Freezing(start=1.0, end=1.0, delay=0.0)  # holds what is frozen and freezes nothing more


def mark(model, share=0.5):
    """Freeze a share of the weights of each row at random; the marks."""
    site = model["site"]
    latent = site.latent().detach()
    marks = torch.rand(latent.shape, generator=torch.Generator().manual_seed(7)) < share
    site.weight_quantizer.frozen = marks
    return marks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("make", "method", "bits"), KINDS)
def test_no_optimizer_changes_a_frozen_code(make, method, bits, optimizer):
    model = make(method, bits)
    site, marks = model["site"], mark(model)
    codes, start = site.encode_weight().codes, site.latent().detach().clone()
    remedy, optimizer = IterativeFreezing(model, NEVER, steps=200), OPTIMIZERS[optimizer](model.parameters())
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        target = start * (1.5 + torch.randn(start.shape, generator=random))
        optimizer.zero_grad()
        (site.quantized_weight() - target).square().sum().backward()
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
        assert torch.equal(site.encode_weight().codes[marks], codes[marks])
    assert (site.latent() != start)[~marks].float().mean() > 0.5  # the others have been trained
    assert torch.equal(site.eval().quantized_weight(), site.encode_weight().decode())


@pytest.mark.parametrize(("make", "bits"), [(layer, 2), (layer, 4), (layer, 8), (merged, 4)])
def test_a_learned_step_goes_wherever_its_gradient_takes_it(make, bits):
    model = make("lsq", bits)
    site, marks = model["site"], mark(model)
    step = site.weight_quantizer.step
    codes, start = site.encode_weight().codes, step.detach().clone()
    remedy, optimizer = IterativeFreezing(model, NEVER, steps=50), torch.optim.SGD([step], lr=1.0)
    for _ in range(50):  # half of it away, by 1 % at a time
        step.grad = start / 100
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
    torch.testing.assert_close(step.detach(), start / 2)
    encoded = site.encode_weight()
    assert torch.equal(encoded.codes[marks], codes[marks])
    middle = encoded.decode()
    torch.testing.assert_close(site.latent().detach()[marks], middle[marks])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_of_a_step_is_that_of_frozen_integers_times_the_step(bits):
    model = layer("lsq", bits)
    site, marks = model["site"], mark(model)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes, upstream = site.encode_weight().codes.float(), torch.randn(2, 8, 16)
    latent, step = (t.detach().clone().requires_grad_() for t in (site.weight, site.weight_quantizer.step))
    scale = (high * 16) ** -0.5
    scaled = step * scale + (step - step * scale).detach()
    inside = (latent / scaled).clamp(low, high)
    integers = torch.where(marks, codes, inside + (inside.round() - inside).detach())
    (integers * scaled * upstream.sum(0)).sum().backward()
    remedy = IterativeFreezing(model, NEVER, steps=1)
    for part in upstream:  # two micro-batches
        (site.quantized_weight() * part).sum().backward()
    remedy.before_step()
    torch.testing.assert_close(site.weight_quantizer.step.grad, step.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(site.weight.grad, latent.grad)
    assert bool((site.weight.grad[marks] == 0).all())


@pytest.mark.parametrize(("method", "bits"), [("lsq", 4), ("statsq", 2)])
def test_only_the_free_entries_of_a_product_reach_the_projections_and_the_frozen_ones_its_step(method, bits):
    model = merged(method, bits)
    site, marks = model["site"], mark(model)
    upstream = torch.randn(marks.shape)
    free = copy.deepcopy(model)["site"]
    free.weight_quantizer(leaf := free.latent().detach().requires_grad_()).backward(upstream)
    expected = torch.autograd.grad(free.latent(), (free.q, free.k), leaf.grad.masked_fill(marks, 0.0))
    remedy = IterativeFreezing(model, NEVER, steps=1)
    site.quantized_weight().backward(upstream)
    torch.testing.assert_close((site.q.grad, site.k.grad), expected)
    if method == "lsq":
        unfrozen = torch.autograd.grad(
            free.weight_quantizer(leaf), free.weight_quantizer.step, upstream.masked_fill(marks, 0.0)
        )[0]
        of_codes = (upstream * marks * site.encode_weight().codes).sum(-1, keepdim=True) * (7 * 8) ** -0.5
        torch.testing.assert_close(site.weight_quantizer.step.grad, unfrozen + of_codes)
    remedy.close()
    site.q.grad = None
    site.quantized_weight().backward(upstream)
    assert not torch.equal(site.q.grad, expected[0])  # after the phase all gradients pass


@pytest.mark.parametrize("method", ["lsq", "statsq"])
def test_freezing_leaves_the_value_as_it_is_under_autocast_too(method):
    model = layer(method, 4)
    site, _ = model["site"], mark(model)
    with torch.autocast("cpu", torch.bfloat16):
        plain = site.quantized_weight().detach()
        IterativeFreezing(model, NEVER, steps=1)
        value = site.quantized_weight()
    assert value.dtype == plain.dtype and torch.equal(value, plain)
    value.float().sum().backward()
    assert bool(torch.isfinite(site.weight.grad).all())


def test_rows_whose_step_follows_from_the_weights_go_on_training_under_frozen_codes():
    """StatsQ at 8 bits, where a few percent change an outer code: the others grow, and the step with them."""
    model = layer("statsq", 8)
    site, marks = model["site"], mark(model)
    before = site.encode_weight()
    remedy, optimizer = IterativeFreezing(model, NEVER, steps=100), torch.optim.SGD([site.weight], lr=1.0)
    for _ in range(100):
        site.weight.grad = -0.002 * site.weight.detach().sign()
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
    now = site.encode_weight()
    assert torch.equal(now.codes[marks], before.codes[marks])
    assert bool((now.step > 1.5 * before.step).all())


def test_a_row_that_is_frozen_whole_stays_what_it_is():
    model = layer("statsq", 2)
    site, _ = model["site"], mark(model, 1.0)
    before = site.encode_weight()
    remedy, optimizer = IterativeFreezing(model, NEVER, steps=50), OPTIMIZERS["adamw"]([site.weight])
    for _ in range(50):
        site.weight.grad = torch.randn(8, 16)
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
    assert torch.equal(site.encode_weight().decode(), before.decode())
