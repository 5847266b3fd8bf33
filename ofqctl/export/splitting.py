"""Replace slices that divide a tensor by one Split, because fewer operators load faster."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def join_slices(model: onnx.ModelProto) -> None:
    """Replace slices of a tensor that together cover it, in order and along one dimension.

    Args:
        model: The model, changed in place; known shapes of its tensors are used.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    slices: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Slice" and all(name in constants for name in node.input[1:]):
            slices.setdefault(node.input[0], []).append(node)
    splits: dict[
        str, onnx.NodeProto | None
    ] = {}  # by the output of a slice; None if an earlier slice already creates the Split
    for source, parts in slices.items():
        cuts = [_cut([numpy_helper.to_array(constants[name]) for name in node.input[1:]]) for node in parts]
        found = _lengths(cuts, shapes.get(source, []))
        if found is None:
            continue
        axis, lengths = found
        sizes = numpy_helper.from_array(np.asarray(lengths, np.int64), f"{source}.lengths")
        graph.initializer.append(sizes)
        outputs = [node.output[0] for node in parts]
        split = helper.make_node("Split", [source, sizes.name], outputs, axis=axis)
        splits |= {outputs[0]: split, **dict.fromkeys(outputs[1:])}
    nodes = [splits.get(node.output[0], node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(node for node in nodes if node is not None)


def _cut(numbers: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]) -> tuple[int, int, int] | None:
    """Dimension, start and end of a slice, or None if it has several dimensions or skips elements."""
    starts, ends, *rest = (array.tolist() for array in numbers)
    axes, steps = rest[0] if rest else [0], rest[1] if len(rest) > 1 else [1]
    return (axes[0], starts[0], ends[0]) if len(starts) == len(axes) == 1 and steps == [1] else None


def _lengths(cuts: list[tuple[int, int, int] | None], shape: list[int]) -> tuple[int, list[int]] | None:
    """The dimension and lengths of consecutive slices that cover the tensor; else None."""
    known = [cut for cut in cuts if cut is not None]
    axes = {axis % len(shape) for axis, _, _ in known} if shape else set()
    if len(cuts) < 2 or len(known) < len(cuts) or len(axes) != 1:
        return None
    axis = axes.pop()
    total = shape[axis]
    ends = [0, *(min(end, total) for _, _, end in known)]
    follows = all(start == end for (_, start, _), end in zip(known, ends, strict=False))
    if not total or not follows or ends[-1] != total:
        return None
    return axis, np.diff(ends).tolist()
