"""Replace the markers of a traced graph by standard operators."""

from dataclasses import dataclass, field

import onnx
from onnx import helper, numpy_helper

from ofqctl.export.activations import ActivationCodes, can_be_signed, look_up, write_codes, write_values
from ofqctl.export.arithmetic import ExportedWeight, Operand
from ofqctl.export.codes import WeightWriter
from ofqctl.export.constants import compact
from ofqctl.export.convolution import IntegerConvolutions
from ofqctl.export.graph import OWN, Writer
from ofqctl.export.integer import IntegerProducts, Place
from ofqctl.export.marking import DOMAIN
from ofqctl.export.multiply import Multiply, saturates
from ofqctl.export.sites import Product, Sites

IR_OF_OPSET = {20: 9, 21: 10, 25: 13}  # the oldest file format versions with these opsets
UNKNOWN_TO_COMPILERS = (2,)  # bits of types that only the newest opset has
RESHAPES = ("Reshape", "Expand")
"""Operators whose outputs keep their shape in the file. Without it a runtime does not know that dimensions that depend
on the number of images are equal, so that it reuses no memory, and ONNX Runtime takes ten times as long to load."""


@dataclass
class Boundary:
    """A product in a graph.

    Attributes:
        product: The product.
        output: Name of its output tensor.
        factor: Number that it is multiplied by in that tensor.
    """

    product: Product
    output: str
    factor: float = 1.0


@dataclass
class Quantization:
    """The place in a graph where an activation is quantized.

    Attributes:
        operand: Name of the quantizer.
        input: Name of the activation's tensor.
        codes: Name of the codes' tensor.
        lowest: What the tensor has for the lowest code.
    """

    operand: str
    input: str
    codes: str
    lowest: int


@dataclass
class Lowered:
    """A graph of standard operators, with the places of its products.

    Attributes:
        model: The graph.
        products: Products in the order in which they run.
        quantizations: Quantizations in the order in which they run.
        weights: Quantized weights, in the shapes in which they are stored.
    """

    model: onnx.ModelProto
    products: list[Boundary] = field(default_factory=list)
    quantizations: list[Quantization] = field(default_factory=list)
    weights: dict[str, ExportedWeight] = field(default_factory=dict)


def lower(traced: onnx.ModelProto, sites: Sites) -> Lowered:
    """Replace every marker.

    Args:
        traced: A graph of ONNX operators and markers; it is modified and must not be used again.
        sites: The quantizers and products that the markers name.
    """
    lowering = _Lowering(traced, sites)
    for node in traced.graph.node:
        lowering.take(node)
    return lowering.finish()


class _Lowering:
    """Goes through a traced graph once, from its inputs to its outputs."""

    def __init__(self, traced: onnx.ModelProto, sites: Sites) -> None:
        self._traced, self._sites = traced, sites
        self._graph = Writer()
        self._alias = compact(self._graph, list(traced.graph.initializer))
        self._fused = sites.target == "onnxruntime"
        self._weights = WeightWriter(self._graph, streamed=() if self._fused else UNKNOWN_TO_COMPILERS)
        multiply = Multiply(self._graph, self._weights, fused=self._fused)
        self._integer, self._convolutions = IntegerProducts(multiply), IntegerConvolutions(multiply)
        self._signed = _signed_operands(sites)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in traced.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in traced.graph.output}
        self._shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in traced.graph.value_info}
        self._folded: set[str] = set()  # outputs of nodes that were merged into a product
        self.done = Lowered(traced)

    def take(self, node: onnx.NodeProto) -> None:
        """Write the nodes that replace ``node``."""
        if node.output[0] in self._folded:
            return
        inputs = [self._alias.get(name, name) for name in node.input]
        if node.domain != DOMAIN:
            del node.input[:]
            node.input.extend(inputs)
            self._graph.nodes.append(node)
            return
        site = helper.get_node_attr_value(node, "site").decode()
        getattr(self, f"_write_{node.op_type.lower()}")(site, inputs, node.output[0])

    def _write_quantize(self, site: str, inputs: list[str], out: str) -> None:
        operand = self._sites.operands[site]
        codes = ActivationCodes(out, operand, operand.name in self._signed, len(self._shapes[out]))
        write_codes(self._graph, inputs[0], codes, plain=not self._fused)
        self.done.quantizations.append(Quantization(site, inputs[-1], out, codes.lowest))

    def _write_dequantize(self, site: str, inputs: list[str], out: str) -> None:
        write_values(self._graph, self._codes(inputs[0], self._sites.operands[site]), out=out)

    def _write_weight(self, site: str, _inputs: list[str], out: str) -> None:
        self._alias[out] = self._weights.values(self._sites.weights[site])

    def _write_linear(self, site: str, inputs: list[str], out: str) -> None:
        product = self._sites.products[site]
        self._integer.linear(product, self._codes(inputs[0], product.operands[0]), out)
        self._end(product, out)

    def _write_conv2d(self, site: str, inputs: list[str], out: str) -> None:
        product = self._sites.products[site]
        self._convolutions.write(product, self._codes(inputs[0], product.operands[0]), out)
        self.done.products.append(Boundary(product, out))

    def _write_matmul(self, site: str, inputs: list[str], out: str) -> None:
        product = self._sites.products[site]
        factor, end = self._scalar_factor(out)
        left, right = self._shapes[inputs[0]], self._shapes[inputs[1]]
        codes = self._codes(inputs[0], product.operands[0]), self._codes(inputs[1], product.operands[1])
        self._integer.matmul(product, *codes, Place(len(right), left[-1], factor), end)
        self._end(product, end, factor)

    def _end(self, product: Product, output: str, factor: float = 1.0) -> None:
        """Record the place of a product, unless a marker that ends it follows."""
        if not product.dynamic:
            self.done.products.append(Boundary(product, output, factor))

    def _write_result(self, site: str, inputs: list[str], out: str) -> None:
        if out in self._outputs:
            self._graph.op("Identity", inputs[0], out=out)
        else:
            self._alias[out] = inputs[0]
        self.done.products.append(Boundary(self._sites.products[site], inputs[0]))

    def _codes(self, tensor: str, operand: Operand) -> ActivationCodes:
        """The codes in ``tensor``, in the form in which products use them."""
        rank = len(self._shapes[tensor])
        numbers = tensor if operand.table is None else look_up(self._graph, tensor, operand.table)
        return ActivationCodes(numbers, operand, operand.name in self._signed, rank)

    def _scalar_factor(self, out: str) -> tuple[float, str]:
        """Merge a constant factor that follows a product into it; return the factor and the output of both."""
        readers = self._readers.get(out, [])
        if len(readers) != 1 or readers[0].op_type != "Mul" or out in self._outputs:
            return 1.0, out
        other = next((name for name in readers[0].input if name != out), out)
        constant = self._graph.initializers.get(self._alias.get(other, other))
        if constant is None or numpy_helper.to_array(constant).size != 1:
            return 1.0, out
        self._folded.add(readers[0].output[0])
        return float(numpy_helper.to_array(constant).item()), readers[0].output[0]

    def finish(self) -> Lowered:
        """The complete model, with short names and without unused nodes."""
        graph = self._traced.graph
        nodes = _used(self._graph.nodes, self._outputs)
        used = {name for node in nodes for name in node.input}
        kept = {name: tensor for name, tensor in self._graph.initializers.items() if name in used}
        known = {value.name for value in (*graph.input, *graph.output)} | set(kept)
        names = _shorten(nodes, known, self._graph)
        for boundary in self.done.products:
            boundary.output = names.get(boundary.output, boundary.output)
        for quantization in self.done.quantizations:
            quantization.input = names.get(quantization.input, quantization.input)
            quantization.codes = names.get(quantization.codes, quantization.codes)
        shaped = {name for node in nodes if node.op_type in RESHAPES for name in node.output}
        values = [value for value in graph.value_info if names.get(value.name, value.name) in shaped]
        for value in values:
            value.name = names.get(value.name, value.name)
        self.done.weights = self._weights.written
        opset = self._weights.opset
        self.done.model = helper.make_model(
            helper.make_graph(nodes, "model", graph.input, graph.output, list(kept.values()), value_info=values),
            opset_imports=[helper.make_opsetid("", opset), *_more_domains(nodes)],
            ir_version=IR_OF_OPSET[opset],
        )
        return self.done


def _more_domains(nodes: list[onnx.NodeProto]) -> list[onnx.OperatorSetIdProto]:
    """Operator sets beside the standard's."""
    return [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes} - {""})]


def _signed_operands(sites: Sites) -> set[str]:
    """Operands whose codes are int8: right factors of two activations only, and only where no kernel saturates."""
    products = [product for product in sites.products.values() if product.obstacle is None]
    pairs = [product.operands for product in products if product.kind == "matmul"]
    left = {product.operands[0].name for product in products}
    saturating = {right.name for one, right in pairs if saturates(one.bits, right.range.count // 2)}
    return {right.name for _, right in pairs if can_be_signed(right)} - left - saturating


def _used(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _shorten(nodes: list[onnx.NodeProto], known: set[str], graph: Writer) -> dict[str, str]:
    """Give tensors of the traced graph short names; return new names by old names."""
    names: dict[str, str] = {}
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        if node.name not in graph.named:
            node.ClearField("name")
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                if name and name not in known and not name.startswith(OWN):
                    tensors[index] = names.setdefault(name, names.get(name) or graph.fresh())
    return names
