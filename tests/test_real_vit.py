"""A pretrained ViT-Tiny on real images: accuracy, exactness, size and speed of the whole chain."""

import copy
import statistics
import subprocess
import sys
import time

import pytest
import torch

from ofqctl.artifact import make_ledger, save_run, serialize
from ofqctl.convert import convert, describe
from ofqctl.data import DataSpec, LabelSpace, image_loader, open_data
from ofqctl.devices import memory_kept
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.layers import values_kept
from ofqctl.models import ModelRequest, load_model
from ofqctl.ptq import calibrate, calibrate_weights
from ofqctl.recipe.catalogue import load
from ofqctl.results.data import Classes

pytestmark = pytest.mark.slow
SIZE = (3, 224, 224)


@pytest.fixture(scope="module")
def loaded(shared_data):
    return load_model(ModelRequest(f"local-dir:{shared_data / 'vit_tiny_patch16_224'}"))


@pytest.fixture(scope="module")
def images(loaded, shared_data):
    data = open_data(DataSpec(str(shared_data / "imagenet-val-800")), LabelSpace(1000))
    return next(iter(image_loader(data, loaded.data_config, batch_size=64, limit=64)))[0]


def at_bits(loaded, images, weights, activations, recipe="ptq/minmax"):
    model = copy.deepcopy(loaded.model)
    plan = convert(model, load(recipe, [f"weights.bits={weights}", f"activations.bits={activations}"]), SIZE)
    calibrate(model, plan, [images[:32]])
    return model, describe(model, plan)


def test_query_key_reparameterization_at_32_bits_is_the_float_model(loaded, images):
    every = [f"{part}.bits=32" for part in ("weights", "activations")]
    every += [f"{end}.{part}" for end in ("first", "last") for part in every[:2]]
    model = copy.deepcopy(loaded.model)
    plan = convert(model, load("ofq/vit_w2a2", every), SIZE)
    assert sum(module.kind == "qkr" for module in plan.modules.values()) == 12
    with torch.inference_mode():
        expected, got = loaded.model(images), model(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_w8a8_is_within_two_points_of_float_and_float_is_what_it_should_be(shared_data, tmp_path):
    result = quantize(
        QuantizeRequest(
            model=ModelRequest(f"local-dir:{shared_data / 'vit_tiny_patch16_224'}"),
            recipe=load("ptq/minmax", ["weights.bits=8", "activations.bits=8"]),
            calibration=DataSpec(str(shared_data / "imagenet-calib-1000")),
            data=DataSpec(str(shared_data / "imagenet-val-800")),
            output=tmp_path / "run",
        )
    )
    figures = result.evaluation
    assert figures.float.top1 == pytest.approx(84.1, abs=0.2)
    assert figures.quantized.top1 >= figures.float.top1 - 2.0
    assert figures.classes == Classes(present=549, model=1000)


@pytest.mark.parametrize("bits", [4, 8])
def test_logits_do_not_depend_on_the_batch(loaded, images, bits):
    model, _ = at_bits(loaded, images, bits, bits)
    with torch.inference_mode():
        whole = model(images)
        for size in (1, 7):
            parts = torch.cat([model(part) for part in images.split(size)])
            assert torch.equal(parts.argmax(1), whole.argmax(1))
            assert (parts - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("recipe", ["ptq/minmax", "ofq/vit_w2a2"])
def test_the_file_is_within_three_percent_of_the_ideal(loaded, bits, recipe):
    model = copy.deepcopy(loaded.model)
    plan = convert(model, load(recipe, [f"weights.bits={bits}", f"activations.bits={bits}"]), SIZE)
    calibrate_weights(model, plan)
    ledger = make_ledger(model, total=len(serialize(model)), float_model=0)
    assert ledger.total <= 1.03 * ledger.ideal


def test_a_new_process_computes_bit_identical_logits(loaded, images, tmp_path):
    from ofqctl.jobs.writing import run_config

    model, plan = at_bits(loaded, images, 4, 4)
    weights = serialize(model)
    save_run(tmp_path / "run", model, weights, run_config(loaded, load("ptq/minmax"), plan, weights, 0), {})
    with torch.inference_mode():
        torch.save((images, model(images)), tmp_path / "io.pt")
    code = (
        "import sys, torch; from pathlib import Path; from ofqctl.artifact import load_run;"
        "images, logits = torch.load(sys.argv[2]); model = load_run(Path(sys.argv[1])).model;"
        "torch.set_grad_enabled(False); sys.exit(not torch.equal(model(images), logits))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "io.pt")]
    assert subprocess.run(arguments, check=False).returncode == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_evaluation_reaches_0_7_of_the_float_throughput(loaded, images, bits):
    model, _ = at_bits(loaded, images, bits, bits)
    ratios = []
    with torch.inference_mode(), values_kept(model), memory_kept():  # as `evaluate` computes
        for _ in range(9):
            seconds = []
            for subject in (loaded.model, model):
                start = time.process_time()
                subject(images)
                seconds.append(time.process_time() - start)
            ratios.append(seconds[0] / seconds[1])
    # turns lie side by side, so that what else runs on a shared machine slows both
    assert statistics.median(ratios[1:]) >= 0.7, ratios
