"""Writes nodes and constants of an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

OWN = "~"  # names that this program gives to tensors start with it


class Writer:
    """Collects nodes in the order they run, and initializers.

    Attributes:
        nodes: What was written.
        initializers: By name.
        named: The names given to nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.named: set[str] = set()
        self._written: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, out: str | None = None, name: str = "", **attributes: Any) -> str:
        """Write a node with one output, unless one that computes the same is there already.

        Args:
            kind: Type of the operator.
            inputs: Names of tensors; empty for one that is left out.
            out: Name of the output; a new one by default.
            name: Of the node.
            attributes: Of the operator.

        Returns:
            The name of the output.
        """
        known = (kind, inputs, repr(attributes))
        if out is None and known in self._written:
            return self._written[known]
        out = self.fresh() if out is None else out
        self._written[known] = out
        self.nodes.append(helper.make_node(kind, inputs, [out], name=name, **attributes))
        self.named |= {name} - {""}
        return out

    def fresh(self) -> str:
        """A name that no tensor has."""
        self._count += 1
        return f"{OWN}{self._count}"

    def constant(self, value: ArrayLike, name: str | None = None) -> str:
        """The name of an initializer; equal ones without a given name are one."""
        array = np.asarray(value)
        key = (str(array.dtype), array.shape, array.tobytes())
        if name is None and key in self._shared:
            return self._shared[key]
        found = name or self.fresh()
        self.initializers.setdefault(
            found, numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), found)
        )
        if name is None:
            self._shared[key] = found
        return found

    def floats(self, value: ArrayLike, name: str | None = None) -> str:
        """As :meth:`constant`, float32."""
        return self.constant(np.asarray(value, dtype=np.float32), name)

    def vector(self, tensor: str) -> str:
        """All elements in one dimension."""
        return self.op("Reshape", tensor, self.shape([-1]))

    def shape(self, lengths: Sequence[int]) -> str:
        """A constant shape, or list of dimensions."""
        return self.constant(np.asarray(lengths, dtype=np.int64))

    def raw(self, name: str, kind: int, shape: Sequence[int], content: bytes) -> str:
        """An initializer of given bytes."""
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, kind, shape, content, raw=True)
        return name
