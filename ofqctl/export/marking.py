"""Mark the quantizers and products of a model, so that a traced graph names them; the forward stays timm's.

While a model is marked, each of its quantizers and products leaves one node of the domain ``ofqctl`` in the graph that
`torch.onnx` traces; `ofqctl.export.lowering` replaces these nodes. A product that can run on integers takes codes. Any
other product stays a float operation on decoded operands, followed by a node that contains its name.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import ops

from ofqctl.export.arithmetic import Array, ExportedWeight, Operand, operand_of, weight_of
from ofqctl.export.recording import activation_quantizers
from ofqctl.export.sites import Product, Sites, Window, obstacle_of
from ofqctl.hooks import shadowed
from ofqctl.layers import QuantConv2d, QuantLinear, WeightSite, weight_sites
from ofqctl.layers.attention import AttentionProducts, QKRProducts, QuantAttention
from ofqctl.quantizers import Quantizer
from ofqctl.quantizers.cores import over_largest
from ofqctl.results.onnx import Target

DOMAIN = "ofqctl"


@contextmanager
def marked(model: nn.Module, target: Target) -> Iterator[Sites]:
    """Mark ``model`` within the block, where it can be traced but not computed.

    Args:
        model: The quantized model, in evaluation mode.
        target: What the graph is for.

    Yields:
        The quantizers and products that the markers name; products are added while they are traced.
    """
    with ExitStack() as undo:
        yield _Marking(model, target, undo).sites


class _Marking:
    """Replaces the forward of every quantizer and product until ``undo`` is closed."""

    def __init__(self, model: nn.Module, target: Target, undo: ExitStack) -> None:
        self.sites, self._undo = Sites(target), undo
        self._names = {module: name for name, module in model.named_modules()}
        for name, site in weight_sites(model):
            encoded = site.encode_weight()
            assert encoded is not None
            self.sites.weights[name] = weight_of(name, encoded)
        self._block_inputs: dict[nn.Module, Tensor] = {}
        for name, quantizer in activation_quantizers(model).items():
            self.sites.operands[name] = operand_of(name, quantizer)
            self._replace(quantizer, "forward", partial(self._fake_quantize, self.sites.operands[name]))
        for module, name in self._names.items():
            if isinstance(module, QuantLinear):
                self._replace(module, "forward", partial(self._linear, module, name, _bias(module)))
            elif isinstance(module, QuantConv2d):
                self._replace(module, "forward", partial(self._conv2d, module, name, _bias(module)))
            elif isinstance(module, QuantAttention):
                self._mark_attention(module, name)

    def _replace(self, module: Any, method: str, new: Callable[..., Any]) -> None:
        """Replace a method of one module."""
        self._undo.enter_context(shadowed(module, method, new))

    def _mark_attention(self, attention: QuantAttention, name: str) -> None:
        products = attention.products
        if isinstance(products, QKRProducts):
            self._mark_merged(attention, products, name)
        query_key = partial(self._query_key, products, name, before_softmax=not attention.roles)
        self._replace(products, "multiply_query_key", query_key)
        self._replace(products, "multiply_softmax_value", partial(self._softmax_value, products, name))

    def _mark_merged(self, attention: Any, products: QKRProducts, name: str) -> None:
        """Mark the products of a `QKRProducts`."""
        prefix = self._names[products]
        x, both = self._operands(products.x), self._operands(products.x, products.qkx)
        key_term = None if products.key_term is None else products.key_term.detach().cpu().float().numpy()
        merged = _Merged(
            Product(f"{prefix}.qk", "linear", x, self._weight(products.qk, f"{prefix}.qk")),
            Product(f"{name}.query_key", "matmul", both, transposed=True, before_softmax=True, key_term=key_term),
            None,
        )
        value = products.v_proj
        if isinstance(value, QuantLinear):
            weight = self._weight(value, f"{prefix}.v_proj")
            merged.value = Product(f"{prefix}.v_proj", "linear", x, weight, _bias(value))
        self._replace(products, "attend", partial(self._attend_merged, products, merged))
        self._replace(attention.qkv, "forward", partial(self._pass_on, products, attention.qkv.forward))

    def _operands(self, *modules: nn.Module) -> tuple[Operand, ...]:
        """The operands of quantizers; empty if one of them is not a quantizer."""
        found = [self.sites.operands[self._names[m]] for m in modules if isinstance(m, Quantizer)]
        return tuple(found) if len(found) == len(modules) else ()

    def _weight(self, site: WeightSite, name: str) -> ExportedWeight | None:
        return self.sites.weights.get(f"{name}.weight") if site.weight_quantizer is not None else None

    def _weight_value(self, site: WeightSite, name: str, like: Tensor) -> Tensor:
        """The decoded weight, or the weight itself if it is float."""
        weight = self._weight(site, name)
        return site.latent() if weight is None else _node("Weight", (like,), weight.name, weight.shape)

    def _enter(self, product: Product) -> Product:
        """Record a call of a product."""
        call = sum(known.partition("@")[0] == product.name for known in self.sites.products)
        product.name = f"{product.name}@{call + 1}" if call else product.name
        product.obstacle = obstacle_of(product)
        self.sites.products[product.name] = product
        return product

    def _fake_quantize(self, operand: Operand, x: Tensor) -> Tensor:
        return _quantize(x, operand).value(operand)

    def _linear(self, module: QuantLinear, name: str, bias: Array | None, x: Tensor) -> Tensor:
        product = Product(name, "linear", self._operands(module.input), self._weight(module, name), bias)
        if self._enter(product).obstacle is None:
            return self._multiply_weight(product, _quantize(x, product.operands[0]), module.out_features, module.bias)
        x = module.input(x)
        return _result(F.linear(x, self._weight_value(module, name, x), module.bias), product)

    def _conv2d(self, module: QuantConv2d, name: str, bias: Array | None, x: Tensor) -> Tensor:
        product = Product(name, "conv2d", self._operands(module.input), self._weight(module, name), bias)
        product.window = window = _window(module, x)
        self._enter(product)
        if product.obstacle is None:
            codes = _quantize(x, product.operands[0]).codes
            shape = (x.shape[0], module.out_channels, *window.moves(module.kernel_size))
            return _node("Conv2d", (codes,), product.name, shape)
        x = module.input(x)
        top, left, bottom, right = window.pads
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, (left, right, top, bottom), mode=mode)
        weight = self._weight_value(module, name, x)
        convolved = F.conv2d(x, weight, module.bias, window.strides, 0, window.dilations, window.groups)
        return _result(convolved, product)

    def _query_key(
        self, products: AttentionProducts, name: str, query: Tensor, transposed_key: Tensor, *, before_softmax: bool
    ) -> Tensor:
        quantizers = products.q, products.k
        product = Product(f"{name}.query_key", "matmul", self._operands(*quantizers), transposed=True)
        product.before_softmax = before_softmax and not product.dynamic
        return self._matmul(product, quantizers, (query, transposed_key.transpose(-2, -1)))

    def _softmax_value(self, products: AttentionProducts, name: str, weights: Tensor, value: Tensor) -> Tensor:
        quantizers = products.softmax, products.v
        product = Product(f"{name}.softmax_value", "matmul", self._operands(*quantizers))
        return self._matmul(product, quantizers, (weights, value))

    def _matmul(
        self, product: Product, quantizers: tuple[nn.Module, nn.Module], factors: tuple[Tensor, Tensor]
    ) -> Tensor:
        self._enter(product)
        if product.obstacle is None:
            both = [_quantize(x, o) for x, o in zip(factors, product.operands, strict=True)]
            y = self._multiply_codes(product, *both)
            return _result(y, product) if product.dynamic else y
        left, right = (quantizer(x) for quantizer, x in zip(quantizers, factors, strict=True))
        return _result(torch.matmul(left, right.transpose(-2, -1) if product.transposed else right), product)

    def _multiply_weight(self, product: Product, x: "_Coded", width: int, bias: Tensor | None) -> Tensor:
        """A product with a weight, and its bias; the magnitudes of dynamic rows are multiplied in between."""
        shape = (*x.codes.shape[:-1], width)
        if x.largest is None:
            return _node("Linear", (x.codes,), product.name, shape)
        product.bias = None
        y = _node("Linear", (x.codes,), product.name, shape) * x.largest
        return _result(y if bias is None else y + bias, product)

    def _multiply_codes(self, product: Product, left: "_Coded", right: "_Coded") -> Tensor:
        """A product of two activations, multiplied by the magnitudes of dynamic rows and columns."""
        heads = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            left.codes.shape[:-2], right.codes.shape[:-2]
        )
        columns = right.codes.shape[-2] if product.transposed else right.codes.shape[-1]
        shape = (*heads, left.codes.shape[-2], columns)
        y = _node("MatMul", (left.codes, right.codes), product.name, shape)
        y = y if left.largest is None else y * left.largest
        return y if right.largest is None else y * right.largest.transpose(-2, -1)

    def _pass_on(self, products: QKRProducts, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`InputForEachHead`, which also keeps the input for the products."""
        self._block_inputs[products] = x
        return forward(x)

    def _attend_merged(
        self,
        products: QKRProducts,
        merged: "_Merged",
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`QKRProducts.attend` with logits ``x (W x)^T``, and the key term added to their columns."""
        del query, key, scale, enable_gqa
        block_input = self._block_inputs[products].reshape(value.shape[0], value.shape[2], -1)
        shared = _Shared(block_input, merged.projection.operands, products.x)
        projection, logits = replace(merged.projection), replace(merged.query_key)
        if self._enter(projection).obstacle is None:
            width = products.heads * block_input.shape[-1]
            weighted = self._multiply_weight(projection, shared.coded(), width, None)
        else:
            x = shared.value()
            weight = self._weight_value(products.qk, projection.name.partition("@")[0], x)
            weighted = _result(F.linear(x, weight.flatten(0, 1)), projection)
        values = products._in_heads(self._project(products, merged, shared))
        weighted = products._in_heads(weighted)
        exact = self._enter(logits).obstacle is None
        if exact:
            product = self._multiply_codes(logits, shared.in_heads(), _quantize(weighted, logits.operands[1]))
        else:
            product = shared.value().unsqueeze(1) @ products.qkx(weighted).transpose(-2, -1)
        if not exact or logits.dynamic:
            logits.key_term, logits.before_softmax = None, logits.before_softmax and not logits.dynamic
            if products.key_term is not None:
                product = product + F.linear(shared.value(), products.key_term).transpose(1, 2).unsqueeze(2)
            product = _result(product, logits)
        return products.mix(product * products.scale, values, attn_mask, dropout_p, is_causal)

    def _project(self, products: QKRProducts, merged: "_Merged", shared: "_Shared") -> Tensor:
        """Compute the values of a merged block from its input."""
        if merged.value is None:
            return cast(Tensor, products.v_proj(shared.value()))
        product, module = self._enter(replace(merged.value)), cast(QuantLinear, products.v_proj)
        if product.obstacle is None:
            return self._multiply_weight(product, shared.coded(), module.out_features, module.bias)
        x = shared.value()
        weight = self._weight_value(module, product.name.partition("@")[0], x)
        return _result(F.linear(x, weight, module.bias), product)


@dataclass
class _Merged:
    """The products of a block with merged query and key.

    Attributes:
        projection: ``W x``.
        query_key: Product of ``W x`` with ``x``.
        value: Projection of the value, or None if it is float.
    """

    projection: Product
    query_key: Product
    value: Product | None


@dataclass
class _Shared:
    """An activation that several products use, quantized once.

    Attributes:
        x: The activation.
        operand: Description of its quantizer; empty if it is not quantized.
        quantizer: Module that quantizes it.
    """

    x: Tensor
    operand: tuple[Operand, ...]
    quantizer: nn.Module
    _coded: "_Coded | None" = None

    def coded(self) -> "_Coded":
        """Its codes."""
        self._coded = _quantize(self.x, self.operand[0]) if self._coded is None else self._coded
        return self._coded

    def in_heads(self) -> "_Coded":
        """Its codes, the same for every head."""
        codes, largest = self.coded().codes, self.coded().largest
        return _Coded(codes.unsqueeze(1), None if largest is None else largest.unsqueeze(1))

    def value(self) -> Tensor:
        """Its decoded value."""
        if self._coded is None and not self.operand:
            return cast(Tensor, self.quantizer(self.x))
        return self.coded().value(self.operand[0])


def _node(kind: str, inputs: tuple[Tensor, ...], name: str, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """One node of the domain ``ofqctl``."""
    return ops.symbolic(f"{DOMAIN}::{kind}", inputs, {"site": name}, dtype=dtype, shape=tuple(shape), version=1)


@dataclass(frozen=True)
class _Coded:
    """An activation as codes.

    Attributes:
        codes: Codes in the form that the operators take.
        largest: Largest magnitude of each row, (..., 1), or None.
    """

    codes: Tensor
    largest: Tensor | None

    def value(self, operand: Operand) -> Tensor:
        """The decoded value."""
        value = _node("Dequantize", (self.codes,), operand.name, self.codes.shape)
        return value if self.largest is None else value * self.largest


def _quantize(x: Tensor, operand: Operand) -> _Coded:
    """The codes of ``x``; the marker gets the tensor that is quantized, and also ``x`` if that is another tensor."""
    rows, largest = over_largest(x) if operand.dynamic else (x, None)
    inputs = (rows,) if largest is None else (rows, x)
    return _Coded(_node("Quantize", inputs, operand.name, x.shape, torch.uint8), largest)


def _result(y: Tensor, product: Product) -> Tensor:
    return _node("Result", (y,), product.name, y.shape)


def _bias(module: QuantLinear | QuantConv2d) -> Array | None:
    return None if module.bias is None else module.bias.detach().cpu().float().numpy()


def _window(module: QuantConv2d, x: Tensor) -> Window:
    """How ``module`` moves over ``x``, (B, C, H, W)."""
    stride, dilation = (int(module.stride[0]), int(module.stride[1])), (module.dilation[0], module.dilation[1])
    if module.pads_same:
        total = [
            int(get_same_padding(int(size), k, s, d))
            for size, k, s, d in zip(x.shape[-2:], module.kernel_size, stride, dilation, strict=True)
        ]
    elif isinstance(module.padding, str):
        same = module.padding == "same"  # otherwise "valid": no padding
        total = [d * (k - 1) if same else 0 for k, d in zip(module.kernel_size, dilation, strict=True)]
    else:
        total = [2 * amount for amount in module.padding]
    leading = [amount // 2 for amount in total]
    pads = (leading[0], leading[1], total[0] - leading[0], total[1] - leading[1])
    return Window(stride, pads, dilation, module.groups, (int(x.shape[1]), int(x.shape[2]), int(x.shape[3])))
