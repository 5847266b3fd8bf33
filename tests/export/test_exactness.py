"""Every quantization, written and run product by product on torch's own numbers."""

from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from ofqctl.artifact import load_run
from ofqctl.evaluation import of_run
from ofqctl.export import OnnxModel, Target, check_exactness, openvino, write_graph
from ofqctl.export.noise import in_float64
from ofqctl.jobs.export import describe

from .conftest import images_of

RUNS = {
    "2 bits, shifts, merged query and key": ("ofq/vit_w2a2",),
    "2 bits, shifts": ("statsq",),
    "3 bits, symmetric": ("lsq", "weights.bits=3", "activations.bits=3"),
    "4 and 5 bits, zero points": ("ptq/minmax", "weights.bits=4", "activations.bits=5"),
    "6 and 7 bits": ("lsq", "weights.bits=6", "activations.bits=7"),
    "7 bits of half steps": ("statsq", "weights.bits=7", "activations.bits=8"),
    "8 bits of half steps": ("statsq", "weights.bits=8", "activations.bits=8"),
    "8 bits, zero points": ("ptq/minmax",),
    "zero points of weights": ("ptq/minmax", "weights.bits=8", "weights.symmetric=false"),
    "one step for each tensor": (
        "ptq/minmax",
        "activations.granularity=tensor",
        "weights.granularity=tensor",
        "activations.symmetric=true",
    ),
    "8 bits, rows relative to their largest": ("ptq/minmax", "activations.dynamic=true"),
    "2 bits, shifts, such rows": ("statsq", "activations.dynamic=true"),
    "2 bits, shifts, such rows, merged query and key": ("ofq/vit_w2a2", "activations.dynamic=true"),
    "one step for each tensor, such rows": ("ptq/minmax", "activations.dynamic=true", "activations.granularity=tensor"),
    "one step for the image, with a zero point": ("ptq/minmax", "first.activations.granularity=tensor"),
    "8 bits, keys and values of 7": ("ptq/minmax", "activations.granularity=tensor", "attention.kv_bits=7"),
    "8 bits, keys and values of 7, steps of tokens and heads": ("ptq/minmax", "attention.kv_bits=7"),
}


FEW = (
    "2 bits, shifts, merged query and key",
    "4 and 5 bits, zero points",
    "6 and 7 bits",
    "8 bits of half steps",
    "zero points of weights",
    "2 bits, shifts, such rows",
)


def write(directory, target="onnxruntime", batch=None):
    run = load_run(directory)
    graph = write_graph(run.model, describe(of_run(run), target, pixels=False), target, batch)
    return run, graph, graph.serialize()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=() if target == "onnxruntime" and name in FEW else pytest.mark.slow)
        for name in RUNS
        for target in ("onnxruntime", "portable")  # a graph for OpenVINO is a portable one
    ],
)
def test_every_product_gives_torchs_codes_and_torchs_values(run, name, target):
    directory = run(*RUNS[name])
    quantized, graph, content = write(directory, target)
    found = check_exactness(content, graph.lowered, quantized.model, images_of(directory))
    assert found.faults() == []
    assert found.different == 0
    assert found.products == len(graph.products) == (9 if name.endswith("merged query and key") else 8)
    assert [p.obstacle for p in graph.products.values() if p.obstacle] == []


@pytest.mark.parametrize("name", ["one step for each tensor, such rows", "8 bits, zero points"])
def test_in_float64_a_model_has_the_same_codes_and_more_digits(run, name):
    directory = run(*RUNS[name])
    model, images = load_run(directory).model, images_of(directory)
    with torch.inference_mode():
        expected = model(images)
        with in_float64(model):
            logits = model(images.double())
        assert logits.dtype == torch.float64
        assert torch.allclose(logits.float(), expected, atol=1e-2 * float(expected.abs().max()))
        assert torch.equal(model(images), expected)


def test_a_file_for_openvino_has_the_nodes_of_a_portable_one(w2a2):
    portable, own = (onnx.load_from_string(write(w2a2, target)[2]).graph for target in ("portable", "openvino"))
    assert own.SerializeToString() == portable.SerializeToString()


def test_only_one_target_needs_operators_of_one_runtime(w2a2):
    domains = {s: {n.domain for n in onnx.load_from_string(write(w2a2, s)[2]).graph.node} for s in get_args(Target)}
    assert domains == {"onnxruntime": {"", "com.microsoft"}, "openvino": {""}, "portable": {""}}


def test_a_product_with_one_step_takes_one_operator_with_its_steps_and_bias(run):
    _, graph, content = write(run("ptq/minmax", "activations.granularity=tensor"))
    model = onnx.load_from_string(content)
    fused = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert {node.name for node in fused} == set(graph.products)
    readers = {name for node in model.graph.node if node.op_type in ("Mul", "Cast") for name in node.input}
    assert not readers & {node.output[0] for node in fused if node.name != "patch_embed.proj"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("activations.granularity=channel",), "channels are summed"),
        (("activations.bits=32",), "its input is not quantized"),
        (("weights.bits=32",), "its weight is not quantized"),
    ],
)
def test_a_product_that_integers_cannot_hold_stays_float_and_says_why(run, changes, reason):
    directory = run("lsq", "weights.bits=4", "activations.bits=4", *changes)
    quantized, graph, content = write(directory)
    found = check_exactness(content, graph.lowered, quantized.model, images_of(directory))
    assert found.faults() == []
    assert reason in graph.products["blocks.0.mlp.fc1"].obstacle


def test_a_code_on_a_rounding_boundary_is_no_fault_of_its_product(run):
    directory = run("ptq/minmax")
    quantized, graph, content = write(directory)
    pixels, generator = quantized.model.patch_embed.proj.input, torch.Generator().manual_seed(0)
    middles = torch.randint(255, (2, 3, 32, 32), generator=generator) + 0.5
    found = check_exactness(content, graph.lowered, quantized.model, pixels.step * (middles + pixels.offset))
    assert found.different > 0
    assert found.worst < 1e-5


def test_a_product_is_fed_rows_as_they_are_ahead_of_their_division(run):
    _, graph, content = write(run("ptq/minmax", "activations.dynamic=true"))
    divided = {node.output[0] for node in onnx.load_from_string(content).graph.node if node.op_type == "Div"}
    assert not divided & {quantization.input for quantization in graph.lowered.quantizations}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["statsq", "ofq/vit_w2a2"])
@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
        ("beit_base_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3}),
        ("deit_small_distilled_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
        ("levit_128s", {"img_size": 64}),
        ("crossvit_tiny_240", {"img_size": 240, "depth": ((1, 1, 0),)}),
        ("efficientvit_m0", {"img_size": 64, "depth": (1, 1, 1), "num_heads": (2, 2, 2)}),
    ],
)
def test_families_of_timm_are_exact(run, model, kwargs, recipe):
    directory = run(recipe, model=model, **kwargs)
    quantized, graph, content = write(directory, batch=None if model.startswith(("swin", "beit", "eva")) else 2)
    assert check_exactness(content, graph.lowered, quantized.model, images_of(directory)).faults() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
        ("beit_base_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}),
        ("levit_128s", {"img_size": 64}),
        ("crossvit_tiny_240", {"img_size": 240, "depth": ((1, 1, 0),)}),
    ],
)
def test_families_of_timm_are_exact_with_dynamic_rows(run, model, kwargs):
    directory = run("ptq/repq", model=model, **kwargs)
    quantized, graph, content = write(directory, batch=None if model.startswith(("swin", "beit")) else 2)
    assert check_exactness(content, graph.lowered, quantized.model, images_of(directory)).faults() == []


def test_torch_computes_as_before_once_a_graph_was_written(w2a2):
    quantized = load_run(w2a2)
    images = images_of(w2a2)
    with torch.inference_mode():
        before = quantized.model(images)
    write_graph(quantized.model, describe(of_run(quantized), "onnxruntime", pixels=False), "onnxruntime", None)
    with torch.inference_mode():
        assert torch.equal(quantized.model(images), before)


def test_a_wrong_graph_is_found_out(w2a2):
    quantized, graph, content = write(w2a2)
    model = onnx.load_from_string(content)
    step = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.weight.step")
    values = onnx.numpy_helper.to_array(step).copy()
    values[3] *= 1.01
    step.CopyFrom(onnx.numpy_helper.from_array(values, step.name))
    found = check_exactness(model.SerializeToString(), graph.lowered, quantized.model, images_of(w2a2))
    assert found.worst_product == "blocks.0.mlp.fc1"
    assert found.wrong_weights == ["blocks.0.mlp.fc1.weight"]
    assert len(found.faults()) == 2


def test_a_wrong_code_is_found_out(w2a2):
    quantized, graph, content = write(w2a2)
    model = onnx.load_from_string(content)
    taken = next(q.input for q in graph.lowered.quantizations if q.operand == "blocks.0.attn.proj.input")
    added = next(node.input[1] for node in model.graph.node if node.op_type == "Add" and node.input[0] == taken)
    before = next(t for t in model.graph.initializer if t.name == added)
    before.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(before) + np.float32(0.05), before.name))
    found = check_exactness(model.SerializeToString(), graph.lowered, quantized.model, images_of(w2a2))
    assert found.different > 0
    assert "codes differ" in found.faults()[0]


def test_the_graph_is_valid_and_all_its_shapes_can_be_inferred(w2a2):
    _, _, content = write(w2a2, "portable")
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= known
    assert {node.domain for node in model.graph.node} == {""}


def test_the_reference_evaluator_of_onnx_agrees(w2a2, tmp_path):
    _, _, content = write(w2a2, "portable")
    (tmp_path / "x.onnx").write_bytes(content)
    images = images_of(w2a2, 1)
    [logits] = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images.numpy()})
    ours = OnnxModel(tmp_path / "x.onnx")(images).numpy()
    assert np.abs(logits - ours).max() < 1e-4 * np.abs(ours).max()


def test_openvino_agrees_on_quantize_and_dequantize_pairs(w2a2, tmp_path):
    quantized, _, content = write(w2a2, "portable")
    compiled = openvino.compiled(content)
    images = images_of(w2a2, 4)
    with torch.inference_mode():
        expected = quantized.model(images).numpy()
    assert np.abs(compiled([images.numpy()])[0] - expected).max() < 1e-4 * np.abs(expected).max()
