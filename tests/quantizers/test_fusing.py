"""Compiled cores against eager ones, and what products keep for backward."""

import shutil
import warnings

import pytest
import torch
from torch.nn import functional as F

from ofqctl.grids import AffineGrid, CodeRange, IntegerGrid
from ofqctl.quantizers import build_quantizer, computed_again, fused, fusing
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.recipe.plan import quantizer_plan

SHAPE, STEP, SHIFT = (4, 3, 50, 64), (50, 1), (64,)  # large enough to be compiled


def leaves(transposed):
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    x = x.transpose(-2, -1).contiguous().transpose(-2, -1) if transposed else x
    tensors = (x, torch.rand(STEP) + 0.1, torch.randn(SHIFT) * 0.1, torch.randn(SHIFT) * 0.1)
    return [t.requires_grad_() for t in tensors]


def trained(grid, transposed):
    x, step, before, after = tensors = leaves(transposed)
    value = fake_quantize(x, step, grid, before, after)
    with computed_again(value):
        product = value @ value.transpose(-2, -1)
    product.square().sum().backward()
    return value.detach(), [t.grad for t in tensors]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("grid", "transposed"),
    [
        (IntegerGrid(CodeRange(-2, 1)), False),
        (AffineGrid(CodeRange(0, 15), torch.tensor(-3.0), whole=True), True),
        (AffineGrid(CodeRange(-128, 127), torch.tensor(0.5)), False),
    ],
)
def test_compiled_values_are_the_same_bits_and_gradients_agree(grid, transposed):
    value, grads = trained(grid, transposed)
    with fused(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled_value, compiled_grads = trained(grid, transposed)
    assert torch.equal(value, compiled_value)
    for compiled, eager in zip(compiled_grads, grads, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5 * float(eager.abs().max()))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_values_of_a_model_in_bfloat16_are_the_same_bits():
    x, step, *shifts = (t.detach().bfloat16().requires_grad_() for t in leaves(transposed=False))
    eager = fake_quantize(x, step, IntegerGrid(CodeRange(-8, 7)), *shifts)
    with fused(), warnings.catch_warnings():
        warnings.filterwarnings("error", "the quantizers run slower")
        compiled = fake_quantize(x, step, IntegerGrid(CodeRange(-8, 7)), *shifts)
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, eager)


def test_without_a_compiler_there_is_one_warning_and_the_eager_result(monkeypatch):
    expected, _ = trained(IntegerGrid(CodeRange(-2, 1)), transposed=False)

    def broken(core):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fusing, "_compiled", broken)
    with fused():
        with pytest.warns(UserWarning, match="no compiler") as told:
            value, _ = trained(IntegerGrid(CodeRange(-2, 1)), transposed=False)
        assert not fusing.is_fused()
    assert len(told) == 1
    assert torch.equal(value, expected)
    assert not fusing.is_fused()


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_product_on_codes_has_the_gradients_of_one_on_values(bits):
    torch.manual_seed(0)
    codes = CodeRange.of_bits(bits, signed=True)
    x, step, weight = torch.randn(5, 7, 6), torch.rand(7, 1) / codes.high + 0.05, torch.randn(4, 6, requires_grad=True)
    grads = []
    for values in (False, True):
        leaf = x.clone().requires_grad_()
        quantized = fake_quantize(leaf, step, IntegerGrid(codes))
        with computed_again(*[] if values else [quantized]):
            product = F.linear(quantized, weight)
        grads.append(torch.autograd.grad(product.square().sum(), (leaf, weight)))
    assert all(torch.equal(on_codes, on_values) for on_codes, on_values in zip(*grads, strict=True))


def test_a_product_keeps_nothing_of_its_quantized_operands():
    x, weight = torch.randn(8, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)
    value = fake_quantize(x, torch.tensor(0.5), IntegerGrid(CodeRange(-2, 1)))
    with computed_again(value):
        product = F.linear(value, weight)
    storage = value.untyped_storage()._weak_ref()
    del value
    assert torch.UntypedStorage._expired(storage)
    product.sum().backward()
    assert x.grad is not None


def test_under_autocast_the_value_has_the_type_of_the_product():
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = fake_quantize(x, torch.tensor(0.5), IntegerGrid(CodeRange(-2, 1)))
        relative = build_quantizer(quantizer_plan(method="lsq", bits=4, step_shape=(), dynamic=True))(x.bfloat16())
    assert value.dtype == relative.dtype == torch.bfloat16
    assert torch.equal(value, fake_quantize(x, torch.tensor(0.5), IntegerGrid(CodeRange(-2, 1))).bfloat16())
    value.sum().backward()
    assert x.grad.dtype == torch.float32
