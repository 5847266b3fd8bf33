"""A quantized model <-> the tensors of ``model.safetensors``.

A quantized weight ``NAME`` is stored as ``NAME.codes`` (packed uint8, the code minus the lowest code), ``NAME.step``
and the tensors of its grid: ``NAME.offset`` if it has zero points, ``NAME.points`` if it is a table, with
``NAME.thresholds`` if these are not midway. Everything else is stored under its name in the model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError
from ofqctl.grids import SMALLEST_STEP, Encoded, TableGrid
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.packing import pack, packed_size, unpack
from ofqctl.quantizers import Quantizer


def to_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a quantized model (packed codes, grid steps, float tensors), on the CPU, sorted by name."""
    tensors = float_tensors(model)
    for name, site in weight_sites(model):
        encoded = site.encode_weight()
        assert encoded is not None
        codes = encoded.grid.range
        tensors[f"{name}.codes"] = pack(encoded.codes.to(torch.int16) - codes.low, codes.bits)
        tensors[f"{name}.step"] = encoded.step
        tensors |= {f"{name}.{part}": tensor for part, tensor in encoded.grid.tensors().items()}
    return {name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)}


def from_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill a newly built quantized model; every tensor must be used and no value may be missing.

    Args:
        model: The model, built and converted as the file says.
        tensors: Result of :func:`to_tensors`.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: Tensors are missing, unknown, of the wrong shape or type, or have values that no run has.
    """
    rest, wanted = dict(tensors), float_tensors(model)
    for name, site in weight_sites(model):
        assert site.weight_quantizer is not None
        site.fix_codes(read_weight(name, site.weight_quantizer, site.latent().shape, rest, where))
    faults = [f"{name}: missing" for name in wanted if name not in rest]
    faults += [f"{name}: unknown" for name in rest if name not in wanted]
    steps, bounds = _names_of_steps(model), names_of_bounds(model)
    found = (
        fault_of(name, tensor, wanted[name], positive=name in steps, bound=name in bounds)
        for name, tensor in rest.items()
        if name in wanted
    )
    faults += [fault for fault in found if fault]
    if faults:
        raise ArtifactError("\n  ".join([f"{where}: its tensors do not match its config.json:", *faults[:8]]))
    model.load_state_dict(rest, strict=False)  # names, shapes and types were checked above
    for _, site in weight_sites(model):
        assert site.weight_quantizer is not None and site.fixed_codes is not None
        site.weight_quantizer.restore(site.fixed_codes)


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a quantized model that are stored as float32: everything that packed codes do not replace.

    Tensors of a module that several blocks share are listed once, under its first name. Grid steps that training took
    to 0 or below are stored as the smallest one, which is what they compute as.
    """
    steps = _names_of_steps(model)
    modules = {name for name, _ in model.named_modules()}
    replaced = {name for prefix, site in weight_sites(model) for name in replaced_by_codes(prefix, site)}
    state = {name: t.float() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    state |= {name: state[name].clamp(min=SMALLEST_STEP) for name in steps & state.keys()}
    return {name: t for name, t in state.items() if name.rpartition(".")[0] in modules and name not in replaced}


def replaced_by_codes(weight: str, site: WeightSite) -> set[str]:
    """Names in the state dict that packed codes replace: latent weights and tensors of the weight quantizer."""
    assert site.weight_quantizer is not None
    prefix = weight.removesuffix("weight")
    own = {f"{prefix}weight_quantizer.{name}" for name in site.weight_quantizer.state_dict()}
    return own | {f"{prefix}{name}" for name in site.latent_names}


def read_weight(name: str, quantizer: Quantizer, shape: torch.Size, rest: dict[str, Tensor], where: str) -> Encoded:
    """Read one weight, and remove its tensors from ``rest``.

    Args:
        name: Name that the weight is stored under.
        quantizer: Its quantizer, built from the plan.
        shape: Shape of the weight.
        rest: Tensors of the file that are not read yet.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: A tensor is missing, of the wrong shape or type, or has values that no run has.
    """
    codes, expected = quantizer.range, {"step": torch.empty(quantizer.plan.step_shape)} | quantizer.grid.tensors()
    packed = rest.pop(f"{name}.codes", None)
    parts = {part: rest.pop(f"{name}.{part}") for part in expected if f"{name}.{part}" in rest}
    if packed is None or len(parts) < len(expected):
        raise ArtifactError(f"{where}: the codes, grid steps, offsets or points of {name} are missing")
    size = packed_size(shape.numel(), codes.bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ArtifactError(
            f"{where}: {name}.codes is {_kind(packed)}, but {tuple(shape)} at {codes.bits} bits takes {size} bytes"
        )
    for part, tensor in parts.items():
        fault = fault_of(f"{name}.{part}", tensor, expected[part], positive=part == "step")
        if fault:
            raise ArtifactError(f"{where}: {fault}")
    grid = quantizer.grid.with_tensors(parts)
    if isinstance(grid, TableGrid) and not bool((grid.marks.diff() > 0).all()):
        beside = ", or its thresholds do not lie between them" if "thresholds" in parts else ""
        raise ArtifactError(f"{where}: {name}.points are not in ascending order{beside}")
    unpacked = unpack(packed, codes.bits, shape.numel()).reshape(shape).to(torch.int16) + codes.low
    return Encoded(unpacked.to(codes.dtype), parts["step"], grid)


def fault_of(name: str, tensor: Tensor, expected: Tensor, *, positive: bool = False, bound: bool = False) -> str | None:
    """What is wrong with a tensor that was read, or None.

    Args:
        name: Its name, for the message.
        tensor: The tensor.
        expected: A tensor of the type and shape that it must have.
        positive: Whether its values must be positive, as those of grid steps.
        bound: Whether its values may be infinite.
    """
    if _kind(tensor) != _kind(expected):
        return f"{name} is {_kind(tensor)}, expected {_kind(expected)}"
    if not tensor.is_floating_point():
        return None
    if bad := int((tensor.isnan() if bound else ~tensor.isfinite()).sum()):
        return f"{name} has {bad} values that are NaN or infinite"
    if positive and (bad := int((tensor <= 0).sum())):
        return f"{name} has {bad} grid steps that are 0 or negative"
    return None


def names_of_bounds(model: nn.Module) -> set[str]:
    """Names of the buffers of timm's own modules, which hold infinite values where they are the bounds of a clamp."""
    own = ((prefix, module) for prefix, module in model.named_modules() if not isinstance(module, Quantizer))
    return {f"{prefix}.{name}" for prefix, module in own for name, _ in module.named_buffers(recurse=False)}


def _names_of_steps(model: nn.Module) -> set[str]:
    """Names, in the state dict, of the grid steps of all quantizers."""
    return {f"{name}.step" for name, module in model.named_modules() if isinstance(module, Quantizer)}


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
