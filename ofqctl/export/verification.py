"""Verify that a written graph computes the same as torch: product by product exactly, end to end within its noise.

A quantized network amplifies float noise: one activation on a rounding threshold changes its code, and that changes
codes in later layers. Logits of two runtimes therefore differ even if every product is exact. So exactness is verified
part by part, each on the values of torch: every weight, decoded from the file by an independent reader; every product
with its quantizers; and everything between the products, where nothing is rounded to codes. End to end, the graph's
difference to torch is compared with the model's own noise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from ofqctl.export.decoding import decoded_weights
from ofqctl.export.lowering import Lowered
from ofqctl.export.recording import Recording, activation_quantizers, record
from ofqctl.export.runtime import open_session
from ofqctl.export.tracing import INPUT
from ofqctl.layers import weight_sites
from ofqctl.results import export as results

TOLERANCE = 1e-5  # largest difference of a product, relative to its largest value
BETWEEN = 1e-4  # the same between the products, for the runtime's float operators; resampling has 3e-5
BOUNDARY_RATE = 1e-5  # largest share of codes that may lie on a rounding threshold
_LISTED = 10


@dataclass
class Exactness:
    """Results of comparing the parts of a graph on the values of torch.

    Attributes:
        weights: Number of weights that were decoded from the file and compared with the model's.
        wrong_weights: Names of the weights that are not identical.
        products: Number of products compared.
        codes: Number of codes compared.
        different: Number of codes that differ although they were quantized from the same values.
        listed: The first of these, with torch's distance to a rounding threshold in grid steps.
        worst: Largest difference of a product, relative to its largest value.
        worst_product: Name of that product.
        between: Largest difference between the products, relative to the largest value there.
        worst_between: Name of the quantizer with that difference at its input.
        moved: Number of codes that change when they are quantized from the graph's values between the products.
    """

    weights: int = 0
    wrong_weights: list[str] = field(default_factory=list)
    products: int = 0
    codes: int = 0
    different: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)
    worst: float = 0.0
    worst_product: str = ""
    between: float = 0.0
    worst_between: str = ""
    moved: int = 0

    def faults(self) -> list[str]:
        """The faults that were found."""
        faults = [f"{name}: the weight in the file differs from the model's" for name in self.wrong_weights[:_LISTED]]
        if self.different > BOUNDARY_RATE * self.codes or any(d["from_boundary"] > 1e-4 for d in self.listed):
            faults.append(f"{self.different} of {self.codes} codes differ, first {self.listed[:1]}")
        if not self.worst <= TOLERANCE:
            faults.append(f"{self.worst_product}: differs by {self.worst:.1e} of its largest value")
        if not self.between <= BETWEEN:
            faults.append(f"the input of {self.worst_between}: differs by {self.between:.1e} of its largest value")
        return faults

    @property
    def found(self) -> results.Exactness:
        """The figures for a result."""
        exact = not self.faults()
        return results.Exactness(**vars(self), tolerance=TOLERANCE, tolerance_between=BETWEEN, exact=exact)


def check_exactness(
    content: bytes, lowered: Lowered, model: nn.Module, images: Tensor, fed: Tensor | None = None
) -> Exactness:
    """Compare every part of a graph with torch.

    Args:
        content: Content of the file.
        lowered: The graph with the places of its products.
        model: The model that was exported.
        images: Normalized images, (B, 3, H, W).
        fed: The images in the form that the graph takes, if different.
    """
    written = onnx.load_from_string(content)
    torch_record = record(model, images)
    names = list(_in_calls([q.operand for q in lowered.quantizations]))
    found = Exactness()
    _check_weights(written, model, found)
    if lowered.quantizations:
        _check_products(written, lowered, torch_record, names, model, found)
    _check_between(written, lowered, torch_record, names, model, images if fed is None else fed, found)
    return found


def _check_weights(written: onnx.ModelProto, model: nn.Module, found: Exactness) -> None:
    sites = dict(weight_sites(model))
    for name, value in decoded_weights(written):
        with torch.no_grad():
            expected = sites[name].quantized_weight().numpy()
        found.weights += 1
        if not np.array_equal(value.reshape(expected.shape), expected):
            found.wrong_weights.append(name)


def _check_products(
    written: onnx.ModelProto, lowered: Lowered, kept: Recording, names: list[str], model: nn.Module, found: Exactness
) -> None:
    products = [b for b in lowered.products if b.product.operands]
    inputs = {q.input: kept.inputs[name].numpy() for q, name in zip(lowered.quantizations, names, strict=True)}
    got = _run(written, inputs, list(dict.fromkeys(q.codes for q in lowered.quantizations)))
    coded: dict[str, NDArray[Any]] = {}
    quantizers = activation_quantizers(model)
    for quantization, name in zip(lowered.quantizations, names, strict=True):
        quantizer = quantizers[quantization.operand]
        lowest = quantizer.range.low - quantization.lowest
        codes, expected = got[quantization.codes].astype(np.int64) + lowest, kept.codes[name].numpy()
        coded[quantization.codes] = (expected - lowest).astype(got[quantization.codes].dtype)
        found.codes += expected.size
        for index in np.argwhere(codes != expected):
            found.different += 1
            if len(found.listed) < _LISTED:
                place = tuple(int(i) for i in index)
                distance = _from_boundary(quantizer, kept.inputs[name])[place]
                found.listed.append({"operand": name, "index": place, "from_boundary": float(distance)})
    got = _run(written, inputs | coded, list(dict.fromkeys(b.output for b in products)))
    for boundary in products:
        expected = kept.outputs[boundary.product.name].numpy() * np.float32(boundary.factor)
        computed = got[boundary.output]
        if boundary.product.before_softmax and boundary.product.obstacle is None:
            expected, computed = (logits - logits.mean(axis=-1, keepdims=True) for logits in (expected, computed))
        difference = _difference(computed, expected)
        found.products += 1
        if not difference <= found.worst:
            found.worst, found.worst_product = difference, boundary.product.name


def _check_between(
    written: onnx.ModelProto,
    lowered: Lowered,
    kept: Recording,
    names: list[str],
    model: nn.Module,
    fed: Tensor,
    found: Exactness,
) -> None:
    inputs = {
        b.output: kept.outputs[b.product.name].numpy() * np.float32(b.factor)
        for b in lowered.products
        if b.product.operands
    }
    places = {q.input: (q.operand, name) for q, name in zip(lowered.quantizations, names, strict=True)}
    results = dict(zip((value.name for value in written.graph.output), kept.results, strict=True))
    wanted = [tensor for tensor in (*places, *results) if tensor not in inputs and tensor != INPUT]
    got = _run(written, {INPUT: fed.numpy()} | inputs, wanted)
    quantizers = activation_quantizers(model)
    for tensor in wanted:
        if tensor in results:
            _note_between(found, tensor, got[tensor], results[tensor].numpy())
            continue
        operand, name = places[tensor]
        _note_between(found, name, got[tensor], kept.inputs[name].numpy())
        again = quantizers[operand].encode(torch.from_numpy(got[tensor])).codes
        found.moved += int((again != kept.codes[name]).sum())


def _note_between(found: Exactness, name: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    difference = _difference(got, expected)
    if not difference <= found.between:
        found.between, found.worst_between = difference, name


def _in_calls(names: list[str]) -> Iterator[str]:
    """Append ``@2`` to the second occurrence of a name, and so on."""
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
        yield name if counted[name] == 1 else f"{name}@{counted[name]}"


def _difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference, relative to the largest value; infinite if shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(got - expected).max(initial=0.0)) / max(largest, 1e-30)


def _from_boundary(quantizer: Any, x: Tensor) -> NDArray[Any]:
    """Distance of each position to the nearest rounding threshold, in grid steps."""
    x = quantizer.relative(x)[0]
    moved = x.float() if quantizer.before is None else x + quantizer.before
    position = quantizer.grid.position(moved / quantizer.step).detach().numpy()
    distance: NDArray[Any] = np.abs(position - np.floor(position) - 0.5)
    return distance


def _run(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> dict[str, NDArray[Any]]:
    """Run the part of a graph between some of its tensors."""
    session = open_session(part_of(model, inputs, outputs).SerializeToString(), threads=None)
    taken = {value.name for value in session.get_inputs()}
    values = session.run(outputs, {name: value for name, value in inputs.items() if name in taken})
    return dict(zip(outputs, values, strict=True))


def part_of(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], outputs: list[str]) -> onnx.ModelProto:
    """A model with only the nodes that compute ``outputs`` from ``inputs``."""
    needed, nodes = set(outputs) - set(inputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name not in inputs)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
        for name, value in inputs.items()
        if name in used
    ]
    wanted = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes[::-1], "part", given, wanted, initializers)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
