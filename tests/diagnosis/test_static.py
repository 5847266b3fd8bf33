"""Every static figure against a loop over the weights in plain Python."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.diagnosis.opening import open_source
from ofqctl.diagnosis.static import RANGES, codes_of, latents_of, quantiles, steps_of
from ofqctl.diagnosis.weights import AnalyzedWeight
from ofqctl.grids import AffineGrid, CodeRange, Encoded
from ofqctl.layers import weight_sites
from ofqctl.models import read_torch_file


def weight_of(latent, step, bits=2, offset=0.5):
    """A weight whose codes follow from its latent values by the contract."""
    bounds = CodeRange.of_bits(bits, signed=True)
    codes = (latent / step - offset).round().clamp(bounds.low, bounds.high).to(torch.int8)
    grid = AffineGrid(bounds, torch.tensor(offset))
    return AnalyzedWeight("blocks.0.mlp.fc1", "fc1", 0, "statsq", latent, Encoded(codes, step, grid))


def loop(weight, boundary_range):
    """Codes, entropy, dead codes and distances of one weight, entry by entry."""
    grid, offset = weight.encoded.grid.range, weight.encoded.grid.offset
    rows = weight.latent.shape[0]
    found = {"counts": Counter(), "near": Counter(), "clipped": 0, "unused": 0, "confident": 0}
    for row in range(rows):
        step = float(weight.encoded.step.expand(rows, 1)[row])
        used = set()
        for w in weight.latent[row].tolist():
            position = torch.tensor(w) / torch.tensor(step) - offset
            code = min(max(round(position.item()), grid.low), grid.high)
            distance = min(abs(position - (threshold + 0.5)) for threshold in range(grid.low, grid.high)).item()
            found["counts"][code] += 1
            for limit in RANGES:
                found["near"][limit] += distance <= torch.tensor(limit).item()
            found["confident"] += distance > boundary_range
            found["clipped"] += position.item() < grid.low - 0.5 or position.item() > grid.high + 0.5
            used.add(code)
        found["unused"] += grid.high - grid.low + 1 - len(used)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([2, 3, 4]))
def test_figures_are_those_of_a_plain_loop(rows, columns, seed, bits):
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(rows, columns, generator=random)
    step = torch.rand(rows, 1, generator=random) + 0.2
    weight = weight_of(latent, step, bits)
    codes, latents, expected = codes_of(weight), latents_of(weight, 0.005), loop(weight, 0.005)
    count = latent.numel()
    grid = weight.encoded.grid.range
    assert list(codes.counts) == [expected["counts"][code] for code in range(grid.low, grid.high + 1)]
    shares = [n / count for n in expected["counts"].values()]
    assert codes.entropy == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-9)
    assert codes.unused == pytest.approx(expected["unused"] / rows / 2**bits)
    assert latents.clipped == expected["clipped"] / count
    assert latents.confident == pytest.approx(expected["confident"] / count)
    assert latents.within == {f"{limit:g}": expected["near"][limit] / count for limit in RANGES}
    assert sum(latents.positions.counts) == count


def test_thresholds_lie_between_bins_of_the_histogram():
    latent = torch.tensor([[-3.0, -0.51, -0.49, 0.49, 0.51, 3.0]])
    positions = latents_of(weight_of(latent, torch.ones(1, 1), offset=0.0), 0.005).positions
    width = (positions.high - positions.low) / len(positions.counts)
    below = round((-0.5 - positions.low) / width)
    assert (-0.5 - positions.low) / width == pytest.approx(below)
    assert sum(positions.counts[:below]) == 2


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_the_least_value_that_the_share_does_not_exceed(values, level):
    found = quantiles(torch.tensor(values), [level])[f"{level:g}"]
    ordered = sorted(values)
    assert found == pytest.approx(ordered[max(0, math.ceil(level * len(values)) - 1)])


def test_a_training_state_gives_the_weights_that_its_model_has(ofq_run, lsq_run):
    for run in (ofq_run, lsq_run):
        opened = open_source(run)
        found: dict[str, list[AnalyzedWeight]] = {}
        for weight in opened.read_weights():
            found.setdefault(weight.name, []).append(weight)
        from ofqctl.artifact import load_run

        for name, site in weight_sites(load_run(run).model):
            parts = found.pop(name.removesuffix(".weight"))
            codes = torch.cat([part.encoded.codes for part in parts])
            assert torch.equal(codes, site.fixed_codes.codes), name
        assert not found


def test_rows_of_a_fused_projection_are_query_key_and_value(lsq_run):
    weights = [weight for weight in open_source(lsq_run).read_weights() if weight.name == "blocks.0.attn.qkv"]
    assert [weight.role for weight in weights] == ["q", "k", "v"]
    assert [tuple(weight.latent.shape) for weight in weights] == [(48, 48)] * 3
    assert [len(weight.encoded.step) for weight in weights] == [48] * 3
    assert steps_of(weights[0])["0"] == float(weights[0].encoded.step.min())


@pytest.mark.parametrize("name", ["ofq_w2a2_qkr_a", "ofq_w3a3_b"])
def test_the_authors_files_give_the_codes_of_the_imported_model(shared, name):
    import timm

    from ofqctl.convert.ofq_checkpoint import load_ofq, recipe_for

    path = Path(shared / "reference" / f"{name}.pth.tar")
    opened = open_source(path)
    assert opened.notes and f"{2 if 'w2' in name else 3} bits" in opened.notes[0]
    config = read_torch_file(shared / "reference" / f"{name}.io.pt")["config"]
    state = read_torch_file(path)["state_dict"]
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        img_size=config["img"],
        patch_size=config["patch"],
        num_classes=config["classes"],
    )
    load_ofq(model, state, recipe_for(state, wbits=config["w"], abits=config["a"]), (3, 32, 32))
    found: dict[str, list[torch.Tensor]] = {}
    for weight in opened.read_weights():
        found.setdefault(weight.name, []).append(weight.encoded.codes)
    for full, site in weight_sites(model):
        codes = torch.cat(found.pop(full.removesuffix(".weight")))
        assert torch.equal(codes, site.encode_weight().codes), full
    assert not found
