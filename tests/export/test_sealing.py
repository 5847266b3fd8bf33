"""ONNX files hold a digest of themselves, and say which weights they were exported from."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ofqctl.artifact import read_config
from ofqctl.errors import ArtifactError, ModelError, OfqctlError
from ofqctl.evaluation import of_onnx, predict
from ofqctl.export import Description, OnnxModel, look_into, seal_again, set_metadata
from ofqctl.export.sealing import KEY, sealed

from .conftest import make_run

SIZE = [3, 8, 8]
DESCRIPTION = Description(
    architecture="vit_tiny_patch16_224",
    num_classes=2,
    model_args={},
    data_config={
        "input_size": SIZE,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    },
    label_names=["cat", "dog"],
    recipe=None,
    target=None,
    input="normalized",
    source="here",
)


def classifier(scale=1.0, **entries):
    """A graph that averages the pixels and weighs the channels."""
    weights = scale * np.arange(6, dtype=np.float32).reshape(3, 2)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SIZE])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(nodes, "g", [taken], [given], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if entries:
        set_metadata(model, **entries)
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(sealed(classifier(model=DESCRIPTION).SerializeToString()))
    return path


def test_a_file_with_its_digest_is_still_onnx_and_runs(file):
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert model.metadata_props[-1].key == KEY
    subject = of_onnx(file)
    assert subject.notes == []
    assert predict(subject.model, torch.ones(1, *SIZE)).tolist() == [[6.0, 9.0]]


def test_a_file_with_any_flipped_bit_is_refused_or_gives_the_same(file):
    content = file.read_bytes()
    right = predict(of_onnx(file).model, torch.ones(1, *SIZE))
    refused = 0
    for place in range(0, 8 * len(content), 97):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            assert torch.equal(predict(of_onnx(file).model, torch.ones(1, *SIZE)), right)
        except OfqctlError:
            refused += 1
    assert refused > 0


def test_a_file_that_another_program_changed_is_refused_until_it_is_accepted(file):
    model = onnx.load(file)
    model.graph.doc_string = "optimized"
    onnx.save(model, file)
    for read in (OnnxModel, look_into):
        with pytest.raises(ArtifactError, match="changed after it was written") as refused:
            read(file)
        assert "--accept-config" in refused.value.hint
    seal_again(file)
    assert of_onnx(file).notes == []


def test_a_file_of_an_earlier_version_has_no_digest_and_is_read_with_a_note(file):
    file.write_bytes(classifier(model=DESCRIPTION).SerializeToString())
    assert "has no digest" in of_onnx(file).notes[0]


def test_a_file_that_is_older_than_the_run_beside_it_is_told(tmp_path):
    run = make_run(tmp_path / "run", "ptq/minmax")
    now = read_config(run).quantization_config.sha256
    for digest, notes in ((now, 0), ("0" * 64, 1)):
        content = classifier(model=DESCRIPTION, run={"sha256": digest}).SerializeToString()
        (run / "model.onnx").write_bytes(sealed(content))
        told = of_onnx(run / "model.onnx").notes
        assert len(told) == notes
        assert all("is older than the run beside it" in note for note in told)


def test_outputs_that_are_no_numbers_are_an_error(file):
    file.write_bytes(sealed(classifier(6e37, model=DESCRIPTION).SerializeToString()))
    with pytest.raises(ModelError, match="1 of 1 images have outputs that are NaN or infinite"):
        predict(of_onnx(file).model, torch.ones(1, *SIZE) * 100)


ENTRIES = [
    {"model": {"format_version": 2}},
    {"model": DESCRIPTION.model_dump() | {"num_classes": 3, "label_names": None}},
    {"model": DESCRIPTION.model_dump() | {"data_config": {"input_size": [3, 8, 8], "mean": [0.5]}}},
    {"model": DESCRIPTION.model_dump() | {"label_names": ["cat"]}},
    {"model": DESCRIPTION, "run": {"sha256": 3}},
]


@pytest.mark.parametrize("entries", ENTRIES)
def test_metadata_that_cannot_be_used_is_named(file, entries):
    file.write_bytes(sealed(classifier(**entries).SerializeToString()))
    with pytest.raises(ArtifactError, match=r"a\.onnx"):
        of_onnx(file)


@pytest.mark.parametrize(
    "entries",
    [{"products": {"a": 3}}, {"weights": {"a": {"bits": "x", "shape": []}}}, {"verification": {"exactness": 3}}],
)
def test_what_inspect_shows_is_typed(file, entries):
    file.write_bytes(sealed(classifier(model=DESCRIPTION, **entries).SerializeToString()))
    with pytest.raises(ArtifactError, match=f"metadata `ofqctl.{next(iter(entries))}`"):
        look_into(file)


def test_a_tensor_in_another_file_that_is_not_there_is_an_error(file):
    model = classifier()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="gone.bin"))
    file.write_bytes(model.SerializeToString())
    for read in (OnnxModel, look_into):
        with pytest.raises(ArtifactError, match="cannot load it"):
            read(file)


def test_a_file_that_takes_more_images_at_once_than_memory_holds_is_refused(file):
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10**12
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="values at once"):
        OnnxModel(file)
