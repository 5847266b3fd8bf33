"""Run directories: exact, small, deterministic, and safe against what can happen to files."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

from ofqctl.artifact import load_run, make_ledger, save_run, serialize
from ofqctl.artifact.config import QuantizationConfig, RunConfig
from ofqctl.artifact.run import digest
from ofqctl.convert import convert, describe
from ofqctl.errors import ArtifactError
from ofqctl.layers import weight_sites
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def quantized(images, recipe="ptq/minmax", bits=4, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **(TINY | kwargs)).eval()
    recipe = load(recipe, [f"weights.bits={bits}", f"activations.bits={bits}"])
    plan = convert(model, recipe, (3, 32, 32))
    calibrate(model, plan, [images])
    weights = serialize(model)
    config = RunConfig(
        architecture="vit_tiny_patch16_224",
        num_classes=10,
        model_args=TINY | kwargs,
        pretrained_cfg={},
        data_config=timm.data.resolve_data_config(model=model) | {"input_size": [3, 32, 32]},
        source="random",
        quantization_config=QuantizationConfig(
            recipe=recipe, plan=describe(model, plan), sha256=digest(weights), float_bytes=1
        ),
    )
    return model, weights, config


@pytest.fixture
def run(tmp_path, images):
    model, weights, config = quantized(images)
    save_run(tmp_path / "run", model, weights, config, {"top1": 1.0})
    return tmp_path / "run", model


@pytest.mark.parametrize("recipe", ["ptq/minmax", "ofq/vit_w2a2"])
def test_a_model_in_bfloat16_is_stored_in_float32_with_its_codes_and_steps(tmp_path, images, recipe):
    model, _, config = quantized(images, recipe, 8)
    weights = serialize(model.bfloat16())
    part = config.quantization_config.model_copy(update={"sha256": digest(weights)})
    save_run(tmp_path / "run", model, weights, config.model_copy(update={"quantization_config": part}), {})
    stored = load_run(tmp_path / "run").model
    sites = dict(weight_sites(model))
    for name, site in weight_sites(stored):
        one, other = site.fixed_codes, sites[name].encode_weight()
        assert torch.equal(one.codes, other.codes), name
        assert torch.equal(one.step, other.step), name
    assert torch.equal(stored.head.input.step, model.head.input.step.float())
    assert stored(images).dtype == torch.float32


@pytest.mark.parametrize("recipe", ["ptq/minmax", "ofq/vit_w2a2", "lsq", "statsq"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_run_read_back_gives_the_same_logits_bit_for_bit(tmp_path, images, recipe, bits):
    model, weights, config = quantized(images, recipe, bits)
    save_run(tmp_path / "run", model, weights, config, {})
    again = load_run(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(again.model(images), model(images))
    assert serialize(again.model) == weights


def test_the_same_model_gives_the_same_bytes_in_another_process(tmp_path, images):
    code = (
        "import sys, torch, hashlib; sys.path.insert(0, sys.argv[1]); import test_run as t;"
        "images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1));"
        "print(hashlib.sha256(t.quantized(images)[1]).hexdigest())"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120
    result = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == digest(quantized(images)[1])


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_file_is_as_small_as_its_bits_say(images, bits):
    model, weights, _ = quantized(images, "statsq", bits, embed_dim=192, depth=4)
    ledger = make_ledger(model, total=len(weights), float_model=0)
    assert ledger.total <= 1.05 * ledger.ideal
    assert ledger.codes <= ledger.ideal


def test_codes_are_stored_as_the_format_document_says(images):
    model, weights, config = quantized(images, "statsq", 3)
    tensors = safetensors.torch.load(weights)
    plan = config.quantization_config.plan.modules["blocks.0.mlp.fc1"].weight
    lowest = -(2 ** (plan.bits - 1))
    stream = int.from_bytes(bytes(tensors["blocks.0.mlp.fc1.weight.codes"].tolist()), "little")
    codes = [(stream >> (i * plan.bits) & (2**plan.bits - 1)) + lowest for i in range(192 * 48)]
    value = (torch.tensor(codes).reshape(192, 48) + 0.5) * tensors["blocks.0.mlp.fc1.weight.step"]
    with torch.no_grad():
        assert torch.equal(value, model.blocks[0].mlp.fc1.quantized_weight())


def test_there_is_no_latent_weight_in_the_file(images):
    tensors = safetensors.torch.load(quantized(images, "ofq/vit_w2a2", 2)[1])
    assert "blocks.0.mlp.fc1.weight" not in tensors
    assert not any(name.endswith(("products.qk.q", "products.qk.k")) for name in tensors)


def test_the_metadata_names_the_format_version(run):
    with safe_open(run[0] / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"ofqctl_format": "2"}


def damage_truncate(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_flip(path):
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))


def damage_foreign(path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, path / "model.safetensors")


def damage_garbage(path):
    (path / "model.safetensors").write_bytes(b"not safetensors at all")


def damage_empty(path):
    (path / "model.safetensors").write_bytes(b"")


def damage_missing(path):
    (path / "model.safetensors").unlink()


def change_config(path, change):
    """Change the values of a run without a digest, as earlier versions wrote it."""
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]["config_sha256"]
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def damage_version(path):
    change_config(path, lambda c: c["quantization_config"].update(format_version=99))


def damage_not_ours(path):
    change_config(path, lambda c: c.pop("quantization_config"))


def damage_json(path):
    (path / "config.json").write_text("{")


def damage_plan(path):
    modules = "modules"
    change_config(path, lambda c: c["quantization_config"]["plan"][modules].update(ghost={"kind": "linear"}))


def damage_bits(path):
    change_config(path, lambda c: c["quantization_config"]["plan"]["modules"]["head"]["weight"].update(bits=7))


def damage_architecture(path):
    change_config(path, lambda c: c.update(architecture="no_such_model"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_truncate, "truncated"),
        (damage_flip, "changed after it was written"),
        (damage_foreign, "not written by ofqctl"),
        (damage_garbage, "truncated or not a safetensors file"),
        (damage_empty, "truncated or not a safetensors file"),
        (damage_missing, "cannot be read"),
        (damage_version, "format version 99"),
        (damage_not_ours, "not written by ofqctl"),
        (damage_json, "cannot be read"),
        (damage_plan, "ghost"),
        (damage_bits, "head.weight.codes"),
    ],
)
def test_a_damaged_run_is_refused_with_the_reason(run, damage, told):
    damage(run[0])
    with pytest.raises(ArtifactError, match=told):
        load_run(run[0])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a run directory"):
        load_run(tmp_path)


def test_a_full_disk_leaves_the_old_run_and_nothing_else(run, images, monkeypatch):
    directory, model = run
    before = sorted(p.name for p in directory.parent.iterdir())

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        save_run(directory, model, b"", quantized(images)[2], {})
    monkeypatch.undo()
    assert sorted(p.name for p in directory.parent.iterdir()) == before
    with torch.inference_mode():
        assert torch.equal(load_run(directory).model(images), model(images))
