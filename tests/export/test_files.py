"""What is written: bytes, metadata, pixels, other layouts; and what other programs read from it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from ofqctl.artifact import load_run
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import open_run
from ofqctl.export import OnnxModel, look_into, normalize, to_pixels
from ofqctl.export.arithmetic import weight_of
from ofqctl.export.codes import WeightWriter
from ofqctl.export.graph import Writer
from ofqctl.export.multiply import saturates
from ofqctl.grids import AffineGrid, CodeRange, Encoded, IntegerGrid, TableGrid
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.jobs.export_safetensors import SafetensorsRequest, export_safetensors
from ofqctl.models import ModelRequest

from .conftest import images_of

DECODER = Path(__file__).with_name("independent_decoder.py")


def exported(directory, path, **changes):
    return export_onnx(ExportRequest(ModelRequest(str(directory)), output=path, images=8, **changes))


KINDS = ("integers", "halves", "zero points", "zero points between")
KINDS += ("integer table", "table of halves", "table", "powers of two")


def grid_of(kind, bits, rows, random):
    """A grid of every kind: on integers or not, computed from the codes or looked up."""
    codes = CodeRange.of_bits(bits, signed=kind != "zero points")
    powers = 2.0 ** torch.arange(codes.count // 2)
    distances = random.integers(1, 4, codes.count) if bits < 7 else np.ones(codes.count)
    ascending = torch.tensor(np.cumsum(distances) - distances.sum() / 2, dtype=torch.float32)
    return {
        "integers": IntegerGrid(codes),
        "halves": AffineGrid(codes, torch.tensor(0.5)),
        "zero points": AffineGrid(codes, -torch.tensor(random.integers(0, codes.count, (rows, 1)).astype(np.float32))),
        "zero points between": AffineGrid(codes, torch.tensor(random.normal(size=(rows, 1)).astype(np.float32))),
        "integer table": TableGrid(codes, ascending.round()),
        "table of halves": TableGrid(codes, ascending.round() / 2),
        "table": TableGrid(codes, ascending * 0.3),
        "powers of two": TableGrid(codes, torch.cat([-powers.flip(0), powers])),
    }[kind]


@given(
    kind=st.sampled_from(KINDS),
    bits=st.integers(1, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@example(kind="table of halves", bits=8, rows=1, columns=1, seed=0)  # its largest integer is 128
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("streamed", [(), (2, 4)])
def test_weights_of_every_width_and_grid_are_stored_at_it_and_decoded_at_load(
    streamed, kind, bits, rows, columns, seed
):
    random = np.random.default_rng(seed)
    bits = min(bits, 4) if kind == "powers of two" else bits
    grid = grid_of(kind, bits, rows, random)
    codes = torch.tensor(random.integers(grid.range.low, grid.range.high + 1, (rows, columns)), dtype=torch.int16)
    encoded = Encoded(codes, torch.tensor(random.uniform(0.01, 1, (rows, 1)).astype(np.float32)), grid)
    weight = weight_of("w", encoded)
    graph = Writer()
    writer = WeightWriter(graph, streamed)
    wanted = {writer.values(weight): (TensorProto.FLOAT, encoded.decode().numpy())}
    assert (weight.obstacle is None) == (kind not in ("zero points between", "table"))
    if weight.widened:
        wanted[writer.integers(weight)] = (TensorProto.INT8, codes.numpy())
    elif weight.obstacle is None:
        integers = weight.multiplier * grid.points(codes).double().numpy()
        expected = integers - weight.zero + weight.centre
        assert expected.min() >= -128
        assert expected.max() <= 127 + weight.overflows
        wanted[writer.integers(weight)] = (TensorProto.INT8, expected.clip(max=127))
        every = torch.arange(grid.range.low, grid.range.high + 1, dtype=torch.int16).expand(rows, -1)
        largest = weight.multiplier * float(grid.points(every).max())
        assert weight.overflows == (kind in ("powers of two", "table of halves") and largest == 128)
        if weight.overflows:
            wanted[writer.excess(weight)] = (TensorProto.INT8, expected > 127)
        if -128 <= weight.smallest <= weight.largest < 128 and not weight.zero.ndim:
            assert weight.centre == weight.zero
    outputs = [helper.make_tensor_value_info(name, t, [rows, columns]) for name, (t, _) in wanted.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "g", [], outputs, list(graph.initializers.values())),
        opset_imports=[helper.make_opsetid("", writer.opset)],
        ir_version=13,
    )
    stored = graph.initializers["w.codes"].raw_data
    assert len(stored) == -(-codes.numel() * bits // 8)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    for got, (_, expected) in zip(found, wanted.values(), strict=True):
        assert np.array_equal(got, expected)


@given(bits=st.integers(2, 8), largest=st.integers(1, 255))
def test_pairs_of_products_that_do_not_saturate_fit_16_bits(bits, largest):
    assert saturates(bits, largest) == (2 * (2**bits - 1) * largest > np.iinfo(np.int16).max)


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_program_written_from_the_documentation_decodes_the_same_weights(w2a2, tmp_path, target):
    exported(w2a2, tmp_path / "x.onnx", target=target)
    done = subprocess.run(
        [sys.executable, DECODER, w2a2, tmp_path / "x.onnx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout


def test_the_file_says_all_that_evaluation_needs(w2a2, tmp_path):
    result = exported(w2a2, tmp_path / "x.onnx")
    contents = look_into(tmp_path / "x.onnx")
    said, config = contents.description, load_run(w2a2).config
    assert (said.architecture, said.num_classes) == (config.architecture, 10)
    assert said.data_config == config.data_config
    assert said.recipe == "ofq/vit_w2a2"
    assert contents.verification == result.verification.model_dump(mode="json")
    assert contents.weights["blocks.0.mlp.fc1.weight"]["bits"] == 2
    assert contents.weights["blocks.0.mlp.fc1.weight"]["bytes"] == 48 * 192 * 2 // 8
    assert contents.products["blocks.0.mlp.fc1"]["kernel"] == "MatMulIntegerToFloat"
    assert sum(contents.bytes[key] for key in ("codes", "constants", "graph")) == contents.bytes["total"]


def test_a_fixed_batch_takes_any_number_of_images_through_the_program(w2a2, tmp_path):
    exported(w2a2, tmp_path / "x.onnx", batch=3)
    model, images = OnnxModel(tmp_path / "x.onnx"), images_of(w2a2, 7)
    assert model.batch == 3
    with torch.inference_mode():
        expected = load_run(w2a2).model(images)
    assert torch.allclose(model(images), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_file_that_normalizes_takes_pixels(w2a2, tmp_path):
    result = exported(w2a2, tmp_path / "x.onnx", pixels=True)
    assert result.verification.exactness.exact
    model, config = OnnxModel(tmp_path / "x.onnx"), load_run(w2a2).config.data_config
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(to_pixels(normalize(pixels, config), config), pixels)
    with torch.inference_mode():
        expected = load_run(w2a2).model(normalize(pixels, config))
    logits = torch.from_numpy(model.infer(pixels.numpy()))
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(model(normalize(pixels, config)), logits)


def test_a_graph_that_computes_something_else_leaves_no_file(w2a2, tmp_path, monkeypatch):
    from ofqctl.export.integer import IntegerProducts

    def wrong(self, product, left, right, place, out):
        matmul(self, product, left, right, replace(place, factor=1.001 * place.factor), out)

    matmul = IntegerProducts.matmul
    monkeypatch.setattr(IntegerProducts, "matmul", wrong)
    with pytest.raises(ArtifactError, match="does not compute the same as the model") as caught:
        exported(w2a2, tmp_path / "x.onnx")
    assert "differs by 1.0e-03" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_one_file_describes_itself(w2a2, tmp_path):
    path = tmp_path / "one.safetensors"
    result = export_safetensors(SafetensorsRequest(w2a2, output=path))
    assert result.bytes == path.stat().st_size
    again, images = open_run(path), images_of(w2a2)
    assert again.config == load_run(w2a2).config
    assert again.ledger.codes == load_run(w2a2).ledger.codes
    with torch.inference_mode():
        assert torch.equal(again.model(images), load_run(w2a2).model(images))


def test_a_file_that_describes_itself_and_was_changed_is_refused(w2a2, tmp_path):
    path = tmp_path / "one.safetensors"
    export_safetensors(SafetensorsRequest(w2a2, output=path))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        open_run(path)


@pytest.mark.parametrize(("recipe", "bits"), [("ptq/minmax", 4), ("lcq/vit_w3a3", 2)])
def test_weights_alone_fit_the_layout_of_compressed_tensors(run, tmp_path, recipe, bits):
    off = ("activations.bits=32", "first.activations.bits=32", "last.activations.bits=32")
    directory = run(recipe, f"weights.bits={bits}", *off)
    export_safetensors(SafetensorsRequest(directory, "compressed-tensors", tmp_path / "ct"))
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    tensors, name = load_file(tmp_path / "ct" / "model.safetensors"), "blocks.0.mlp.fc1"
    group = next(g for g in config["config_groups"].values() if name in g["targets"])
    assert (config["format"], group["weights"]["num_bits"]) == ("pack-quantized", bits)
    packed, shape = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_shape"]
    integers, each = np.empty(shape, np.int64), 32 // bits
    for row in range(shape[0]):
        for column in range(shape[1]):
            word = int(packed[row, column // each]) & 0xFFFFFFFF
            integers[row, column] = (word >> (bits * (column % each)) & (1 << bits) - 1) - (1 << bits - 1)
    expected = load_run(directory).model.get_submodule(name).quantized_weight().detach().numpy()
    assert np.array_equal((integers * tensors[f"{name}.weight_scale"]).astype(np.float32), expected)
    assert "patch_embed.proj" in config["ignore"]


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (("ptq/minmax",), "static grid steps and grids of their own"),
        (("statsq", "activations.bits=32"), "half a step off 0"),
        (("ofq/vit_w2a2", "activations.bits=32"), "query and key are merged"),
    ],
)
def test_what_compressed_tensors_cannot_hold_is_refused_with_the_reason(run, tmp_path, recipe, reason):
    directory = run(*recipe, "first.activations.bits=32", "last.activations.bits=32")
    with pytest.raises(ArtifactError, match="cannot represent") as caught:
        export_safetensors(SafetensorsRequest(directory, "compressed-tensors", tmp_path / "ct"))
    assert reason in str(caught.value)
    assert not (tmp_path / "ct").exists()
