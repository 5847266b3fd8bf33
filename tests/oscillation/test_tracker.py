"""The tracker counts as a plain loop does, and goes on after a stop as if there had been none."""

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ofqctl.artifact.tensors import from_tensors, to_tensors
from ofqctl.errors import ArtifactError, ModelError
from ofqctl.layers import QuantLinear, weight_sites
from ofqctl.oscillation import OscillationTracker, trajectory
from ofqctl.recipe import ModulePlan, quantizer_plan

MOMENTUM = 0.1


class Oracle:
    """One weight, by the definition of Nagel et al."""

    def __init__(self, code: int) -> None:
        self.code, self.direction, self.frequency, self.flips = code, 0, 0.0, 0

    def step(self, code: int) -> bool:
        difference = self.code - code
        direction = (difference > 0) - (difference < 0)
        oscillates = direction != 0 and direction == -self.direction
        self.frequency = MOMENTUM * oscillates + (1 - MOMENTUM) * self.frequency
        if direction != 0:
            self.direction = direction
            self.flips += 1
        self.code = code
        return direction != 0


def on_grid(method: str, bits: int, weights: int) -> QuantLinear:
    """A layer whose codes are its weights: step 1, offset 0."""
    plan = quantizer_plan(
        method=method, bits=bits, step_shape=(1, 1), **({} if method == "lsq" else {"symmetric": False})
    )
    return QuantLinear(nn.Linear(weights, 1, bias=False), ModulePlan(kind="linear", weight=plan))


@st.composite
def walks(draw):
    method, bits, low, high = draw(
        st.sampled_from([("lsq", 2, -2, 1), ("lsq", 8, -128, 127), ("uniform", 2, 0, 3), ("uniform", 8, 0, 255)])
    )
    start = draw(st.lists(st.integers(low, high), min_size=1, max_size=5))
    moves = st.lists(st.sampled_from([0, 0, 1, -1, 2, -100]), min_size=len(start), max_size=len(start))
    codes = [start]
    for move in draw(st.lists(moves, max_size=40)):
        codes.append([min(high, max(low, code + by)) for code, by in zip(codes[-1], move, strict=True)])
    return method, bits, codes


def moved(codes):
    """Shares of codes, signs and magnitudes that are not those at the start; points are the codes."""
    pairs = list(zip(codes[0], codes[-1], strict=True))
    signs = [((a > 0) - (a < 0)) != ((b > 0) - (b < 0)) for a, b in pairs]
    return [
        sum(each) / len(pairs) for each in ([a != b for a, b in pairs], signs, [abs(a) != abs(b) for a, b in pairs])
    ]


@settings(max_examples=150, deadline=None)
@given(walks())
def test_flips_and_frequencies_are_those_of_a_plain_loop(walk):
    method, bits, codes = walk
    layer = on_grid(method, bits, len(codes[0]))
    layer.weight.data = torch.tensor([codes[0]], dtype=torch.float32)
    tracker = OscillationTracker(nn.Sequential(layer), momentum=MOMENTUM)
    oracles, flips = [Oracle(code) for code in codes[0]], []
    for row in codes[1:]:
        layer.weight.data = torch.tensor([row], dtype=torch.float32)
        tracker.update()
        flips.append(sum([oracle.step(code) for oracle, code in zip(oracles, row, strict=True)]))
    expected = [oracle.frequency for oracle in oracles]
    assert tracker.frequencies("0.weight").flatten().tolist() == pytest.approx(expected, abs=1e-6)
    state = tracker.state_dict()
    assert state["0.weight.direction"].flatten().tolist() == [-oracle.direction for oracle in oracles]
    assert state["0.weight.recent_flips"].tolist() == [[count] for count in flips[-30:]]
    for figures in (tracker.summary(0.05)["sites"]["0.weight"], tracker.summary(0.05)["total"]):
        assert figures["weights"] == len(oracles)
        assert figures["flips"] == sum(oracle.flips for oracle in oracles)
        assert figures["oscillating"] == sum(f > 0.05 for f in expected) / len(oracles)
        assert (figures["moved"], figures["signs_moved"], figures["magnitudes_moved"]) == pytest.approx(moved(codes))
        recent = flips[-30:]
        assert figures["flips_per_step"] == pytest.approx(sum(recent) / max(1, len(recent) * len(oracles)))


def test_every_weight_of_a_model_is_followed_and_merged_products_are_too(quantized):
    model = quantized()
    followed = ["patch_embed.proj.weight", "blocks.0.attn.products.qk.weight", "blocks.1.mlp.fc2.weight", "head.weight"]
    sites = dict(weight_sites(model))
    tracker = OscillationTracker(model, momentum=MOMENTUM)
    assert set(followed) <= set(tracker.summary(0.0)["sites"]) == set(sites)

    def codes(name):
        return sites[name].encode_weight().codes.flatten().tolist()

    oracles = {name: [Oracle(code) for code in codes(name)] for name in followed}
    torch.manual_seed(0)
    for step in range(8):
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.dim() > 1):
                parameter.add_(torch.randn_like(parameter) * parameter.std(), alpha=0.3 * (-1) ** step)
        tracker.update()
        for name, weights in oracles.items():
            for oracle, code in zip(weights, codes(name), strict=True):
                oracle.step(code)
    for name, weights in oracles.items():
        expected = torch.tensor([oracle.frequency for oracle in weights]).reshape(sites[name].latent().shape)
        torch.testing.assert_close(tracker.frequencies(name), expected, rtol=0, atol=1e-6)
        assert tracker.summary(0.0)["sites"][name]["flips"] == sum(oracle.flips for oracle in weights) > 0
        assert bool((expected > 0).any())


def train(model, backward, optimizer, tracker, steps):
    for step in steps:
        backward(model, step)
        optimizer.step()
        tracker.update()


@pytest.mark.parametrize("stop", [3, 11])
def test_a_tracker_that_was_saved_and_read_goes_on_as_one_that_was_not(quantized, backward, monkeypatch, stop):
    monkeypatch.setattr(trajectory, "WINDOW", 7)
    model = quantized()
    tracker = OscillationTracker(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    train(model, backward, optimizer, tracker, range(stop))
    saved = safetensors.torch.load(safetensors.torch.save(tracker.state_dict()))
    model.head.weight.data.neg_()  # what the model is when the second one is made does not matter
    second = OscillationTracker(model, samples=2)
    model.head.weight.data.neg_()
    second.load_state_dict(saved)
    for key, tensor in second.state_dict().items():
        torch.testing.assert_close(tensor, saved[key], rtol=0, atol=0, equal_nan=True)
    for step in range(stop, 16):
        train(model, backward, optimizer, tracker, [step])
        second.update()
    expected, found = tracker.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0, equal_nan=True)
    assert int(expected["steps"]) == 16 and expected["head.weight.trajectory"].shape == (7, 4, 5)
    assert second.summary(0.005) == tracker.summary(0.005)


def test_a_weight_takes_seven_bytes(quantized):
    tracker = OscillationTracker(quantized(), samples=0)
    tracker.update()
    tensors = {
        k: t for k, t in tracker.state_dict().items() if k.endswith((".codes", ".start", ".direction", ".frequency"))
    }
    weights = tracker.summary(0.0)["total"]["weights"]
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 7 * weights


def test_forward_passes_change_nothing(quantized, backward, images):
    model = quantized()
    tracker = OscillationTracker(model)
    backward(model, 0)
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    tracker.update()
    before = tracker.state_dict()
    model.eval()
    with torch.no_grad():
        model(images)
    model.train()
    backward(model, 1)
    for key, tensor in tracker.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0, equal_nan=True)


def test_a_trajectory_holds_latent_value_step_code_and_gradient_of_the_latest_steps(quantized, backward, monkeypatch):
    monkeypatch.setattr(trajectory, "WINDOW", 4)
    model = quantized()
    tracker = OscillationTracker(model, samples=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    site = model.blocks[0].mlp.fc1
    rows = []
    for step in range(6):
        train(model, backward, optimizer, tracker, [step])
        codes = site.encode_weight()
        positions = codes.grid.position(site.weight.detach() / codes.step)
        tensors = site.weight.detach(), codes.step.expand_as(site.weight), codes.codes, site.weight.grad, positions
        rows.append([t.flatten().float().clone() for t in tensors])
    found = tracker.trajectory("blocks.0.mlp.fc1.weight")
    assert len(set(found.entries.tolist())) == 3
    for number, tensor in enumerate((found.latent, found.step, found.code, found.gradient, found.position)):
        expected = torch.stack([row[number][found.entries] for row in rows[-4:]])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    again = OscillationTracker(model, samples=3)
    assert torch.equal(again.trajectory("blocks.0.mlp.fc1.weight").entries, found.entries)
    model.zero_grad()
    tracker.update()
    assert bool(tracker.trajectory("blocks.0.mlp.fc1.weight").gradient[-1].isnan().all())


def test_a_state_of_an_earlier_version_is_read_and_says_nothing_of_what_it_lacks(quantized, backward):
    model = quantized()
    tracker = OscillationTracker(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    train(model, backward, optimizer, tracker, range(2))
    old = {key: t[..., :4] if key.endswith("trajectory") else t for key, t in tracker.state_dict().items()}
    old = {key: t for key, t in old.items() if not key.endswith(".start")}
    again = OscillationTracker(model)
    again.load_state_dict(old)
    train(model, backward, optimizer, again, [2])
    found = again.trajectory("blocks.0.mlp.fc1.weight")
    assert torch.equal(found.latent[:2], tracker.trajectory("blocks.0.mlp.fc1.weight").latent)
    assert found.position.isnan().all(dim=1).tolist() == [True, True, False]
    assert "moved" in tracker.summary(0.0)["total"]
    assert "moved" not in again.summary(0.0)["total"]
    assert not any(key.endswith(".start") for key in again.state_dict())


def test_the_gradient_of_a_merged_product_is_summed_over_the_batches_of_a_step(quantized, backward, monkeypatch):
    model = quantized()
    tracker = OscillationTracker(model, samples=50)
    site = model.blocks[1].attn.products.qk
    for step in (0, 1):
        backward(model, step)
    tracker.update()
    leaf = site.latent().detach().requires_grad_()
    monkeypatch.setattr(site, "latent", lambda: leaf)
    for step in (0, 1):
        backward(model, step)
    found = tracker.trajectory("blocks.1.attn.products.qk.weight")
    torch.testing.assert_close(found.gradient[0], leaf.grad.flatten()[found.entries])
    assert bool((found.gradient != 0).any())
    tracker.close()
    assert not site.weight_quantizer._forward_pre_hooks


def test_a_state_of_another_model_is_refused(quantized):
    model = quantized()
    tracker = OscillationTracker(model)
    state = tracker.state_dict()
    other = {k: t for k, t in state.items() if not k.startswith("head.")}
    with pytest.raises(ArtifactError, match=r"head\.weight\.codes: missing"):
        tracker.load_state_dict(other)
    with pytest.raises(ArtifactError, match=r"neck\.weight\.codes: unknown"):
        tracker.load_state_dict(state | {"neck.weight.codes": torch.zeros(1)})
    with pytest.raises(ArtifactError, match=r"head\.weight: \(3, 48\), expected \(10, 48\)"):
        tracker.load_state_dict(state | {"head.weight.codes": torch.zeros(3, 48)})


def test_a_model_that_has_codes_only_cannot_be_followed(quantized):
    model = quantized()
    from_tensors(model, to_tensors(model), "memory")
    with pytest.raises(ModelError, match="its codes are fixed"):
        OscillationTracker(model)
