"""Writes nodes and constants of an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OWN = "~"  # start of the tensor names that this program assigns
_COMPUTED, _FEW = (
    ("Mul", "Reshape"),
    64,
)  # operators that are computed at once, and the largest number of elements for that


class Writer:
    """Collects nodes, in the order in which they run, and initializers.

    Attributes:
        nodes: The nodes written so far.
        initializers: Initializers by name.
        named: Names assigned to nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.named: set[str] = set()
        self._written: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, out: str | None = None, name: str = "", **attributes: Any) -> str:
        """Write a node with one output, unless there already is one that computes the same.

        Products and reshapes of small constants are computed here and become constants.

        Args:
            kind: Type of the operator.
            inputs: Names of tensors; empty for an omitted input.
            out: Name of the output; a new one by default.
            name: Name of the node.
            attributes: Attributes of the operator.

        Returns:
            Name of the output.
        """
        if kind in _COMPUTED and out is None and all(self._is_small(name) for name in inputs):
            return self._compute(kind, inputs, attributes)
        known = (kind, inputs, repr(attributes))
        if out is None and known in self._written:
            return self._written[known]
        out = self.fresh() if out is None else out
        self._written[known] = out
        self.nodes.append(helper.make_node(kind, inputs, [out], name=name, **attributes))
        self.named |= {name} - {""}
        return out

    def fresh(self) -> str:
        """An unused tensor name."""
        self._count += 1
        return f"{OWN}{self._count}"

    def constant(self, value: ArrayLike, name: str | None = None) -> str:
        """Add an initializer and return its name; equal ones without a given name are merged."""
        array = np.asarray(value)
        if name is not None:
            self.initializers.setdefault(name, _tensor(array, name))
            return name
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.fresh()
            self.initializers[self._shared[key]] = _tensor(array, self._shared[key])
        return self._shared[key]

    def adopt(self, tensor: onnx.TensorProto) -> str:
        """Add an initializer of another graph; return its name, or that of an equal one."""
        array = numpy_helper.to_array(tensor)
        name = self._shared.setdefault((str(array.dtype), array.shape, array.tobytes()), tensor.name)
        if name == tensor.name:
            self.initializers[name] = tensor
        return name

    def _is_small(self, name: str) -> bool:
        """Whether it is a small constant whose name no reader of the file relies on."""
        tensor = self.initializers.get(name) if name.startswith(OWN) else None
        return tensor is not None and int(np.prod(tensor.dims)) <= _FEW

    def _compute(self, kind: str, inputs: tuple[str, ...], attributes: dict[str, Any]) -> str:
        names = [f"{index}" for index, _ in enumerate(inputs)]
        node = helper.make_node(kind, names, ["out"], **attributes)
        values = (numpy_helper.to_array(self.initializers[name]) for name in inputs)
        (value,) = ReferenceEvaluator(node).run(None, dict(zip(names, values, strict=True)))
        return self.constant(value)

    def floats(self, value: ArrayLike, name: str | None = None) -> str:
        """Like :meth:`constant`, as float32."""
        return self.constant(np.asarray(value, dtype=np.float32), name)

    def vector(self, tensor: str) -> str:
        """Write a tensor of all elements in one dimension."""
        return self.op("Reshape", tensor, self.shape([-1]))

    def shape(self, lengths: Sequence[int]) -> str:
        """Add a constant shape, or list of dimensions."""
        return self.constant(np.asarray(lengths, dtype=np.int64))

    def raw(self, name: str, kind: int, shape: Sequence[int], content: bytes) -> str:
        """Add an initializer with the given bytes."""
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, kind, shape, content, raw=True)
        return name


def _tensor(array: NDArray[Any], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
