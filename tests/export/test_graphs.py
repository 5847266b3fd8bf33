import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ofqctl.export.graph import Writer
from ofqctl.export.splitting import join_slices


def sliced(cuts, length, *, axis=1, steps=None):
    """A model that doubles slices of (3, length, 2), and says what shape it slices."""
    nodes, constants = [helper.make_node("Identity", ["x"], ["whole"])], []
    for number, (start, end) in enumerate(cuts):
        values = {"start": [start], "end": [end], "axis": [axis]} | ({"step": steps} if steps else {})
        names = [f"{key}{number}" for key in values]
        pairs = zip(names, values.values(), strict=True)
        constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in pairs]
        nodes.append(helper.make_node("Slice", ["whole", *names], [f"part{number}"]))
        nodes.append(helper.make_node("Add", [f"part{number}"] * 2, [f"y{number}"]))
    shape = [3, length, 2]
    outputs = [helper.make_empty_tensor_value_info(f"y{number}") for number in range(len(cuts))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
        constants,
        value_info=[helper.make_tensor_value_info("whole", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def outputs_of(model, length):
    x = np.arange(6 * length, dtype=np.float32).reshape(3, length, 2)
    return ReferenceEvaluator(model).run(None, {"x": x})


@given(lengths=st.lists(st.integers(1, 4), min_size=2, max_size=5), negative=st.booleans())
@settings(max_examples=30, deadline=None)
def test_slices_that_are_all_of_a_tensor_become_one_split_of_the_same_parts(lengths, negative):
    ends = np.cumsum(lengths).tolist()
    cuts = list(zip([0, *ends[:-1]], [*ends[:-1], np.iinfo(np.int64).max], strict=True))
    model = sliced(cuts, ends[-1], axis=-2 if negative else 1)
    expected = outputs_of(model, ends[-1])
    join_slices(model)
    assert kinds(model).count("Split") == 1
    assert "Slice" not in kinds(model)
    assert all(np.array_equal(a, b) for a, b in zip(outputs_of(model, ends[-1]), expected, strict=True))


@pytest.mark.parametrize(
    ("cuts", "steps"),
    [
        ([(0, 4)], None),  # one part
        ([(0, 2), (3, 4)], None),  # a gap
        ([(0, 2), (1, 4)], None),  # an overlap
        ([(0, 2), (2, 3)], None),  # an end that is left out
        ([(2, 4), (0, 2)], None),  # another order
        ([(0, 2), (2, 4)], [2]),  # elements left out
    ],
)
def test_other_slices_stay(cuts, steps):
    model = sliced(cuts, 4, steps=steps)
    before = model.SerializeToString()
    join_slices(model)
    assert model.SerializeToString() == before


def test_what_few_unnamed_constants_give_is_a_constant():
    graph = Writer()
    found = graph.op("Mul", graph.floats([[2.0], [3.0]]), graph.floats(0.5))
    assert not graph.nodes
    assert np.array_equal(numpy_helper.to_array(graph.initializers[found]), np.float32([[1.0], [1.5]]))


def test_constants_that_readers_know_by_name_and_large_ones_stay():
    graph = Writer()
    graph.op("Mul", graph.floats([2.0], "layer.weight.step"), graph.floats(0.5))
    graph.op("Reshape", graph.floats(np.ones(1000)), graph.shape([10, 100]))
    assert [node.op_type for node in graph.nodes] == ["Mul", "Reshape"]
    assert "layer.weight.step" in graph.initializers


def test_an_adopted_constant_is_shared_with_equal_ones():
    graph = Writer()
    ours = graph.shape([1, 2])
    assert graph.adopt(numpy_helper.from_array(np.array([1, 2]), "theirs")) == ours
    assert graph.adopt(numpy_helper.from_array(np.array([1, 3]), "other")) == "other"
    assert graph.shape([1, 3]) == "other"
