"""A quantized model <-> the tensors of ``model.safetensors``.

A quantized weight ``NAME`` is stored as ``NAME.codes`` (uint8, packed; code minus the lowest), ``NAME.step`` and what
its grid is told from: ``NAME.offset`` where it has zero points, ``NAME.points`` where it is a table. Everything else
lies under its name in the model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.packing import pack, packed_size, unpack
from ofqctl.quantizers import Quantizer


def to_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a quantized model: packed codes, steps, and what is float; on the CPU, in order of their names."""
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
    """Fill a freshly built quantized model; every tensor must be used and every value must be given.

    Args:
        model: Built and converted as the artifact says.
        tensors: From :func:`to_tensors`.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: Tensors that are missing, unknown, or of another shape or type.
    """
    rest, wanted = dict(tensors), float_tensors(model)
    for name, site in weight_sites(model):
        assert site.weight_quantizer is not None
        site.fix_codes(read_weight(name, site.weight_quantizer, site.latent().shape, rest, where))
    faults = [f"{name}: missing" for name in wanted if name not in rest]
    faults += [f"{name}: unknown" for name in rest if name not in wanted]
    faults += [
        f"{name}: {_kind(tensor)}, expected {_kind(wanted[name])}"
        for name, tensor in rest.items()
        if name in wanted and _kind(tensor) != _kind(wanted[name])
    ]
    if faults:
        raise ArtifactError("\n  ".join([f"{where}: its tensors do not fit its config.json:", *faults[:8]]))
    model.load_state_dict(rest, strict=False)  # strictness was checked above, by name, shape and type
    for _, site in weight_sites(model):
        assert site.weight_quantizer is not None and site.fixed_codes is not None
        site.weight_quantizer.restore(site.fixed_codes)


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of the state dict of a quantized model is stored as it is: all that packed codes do not stand for.

    The tensors of a module that several blocks share come only under the first of its names.
    """
    modules = {name for name, _ in model.named_modules()}
    replaced = {name for prefix, site in weight_sites(model) for name in _replaced_by_codes(prefix, site)}
    state = model.state_dict().items()
    return {name: t for name, t in state if name.rpartition(".")[0] in modules and name not in replaced}


def _replaced_by_codes(weight: str, site: WeightSite) -> set[str]:
    """Names in the state dict that packed codes stand for: latent weights and the weight quantizer's own tensors."""
    assert site.weight_quantizer is not None
    prefix = weight.removesuffix("weight")
    own = {f"{prefix}weight_quantizer.{name}" for name in site.weight_quantizer.state_dict()}
    return own | {f"{prefix}{name}" for name in site.latent_names}


def read_weight(name: str, quantizer: Quantizer, shape: torch.Size, rest: dict[str, Tensor], where: str) -> Encoded:
    """Take the tensors of one weight out of ``rest``.

    Args:
        name: What it is stored under.
        quantizer: Built from the plan.
        shape: Of the weight.
        rest: Tensors of the file.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: One of them is missing, or of another shape or type.
    """
    codes, expected = quantizer.range, {"step": torch.empty(quantizer.plan.step_shape)} | quantizer.grid.tensors()
    packed = rest.pop(f"{name}.codes", None)
    parts = {part: rest.pop(f"{name}.{part}") for part in expected if f"{name}.{part}" in rest}
    if packed is None or len(parts) < len(expected):
        raise ArtifactError(f"{where}: the codes, steps, offsets or points of {name} are missing")
    size = packed_size(shape.numel(), codes.bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ArtifactError(
            f"{where}: {name}.codes is {_kind(packed)}, but {tuple(shape)} at {codes.bits} bits takes {size} bytes"
        )
    for part, tensor in parts.items():
        if _kind(tensor) != _kind(expected[part]):
            raise ArtifactError(f"{where}: {name}.{part} is {_kind(tensor)}, expected {_kind(expected[part])}")
    grid = quantizer.grid.with_tensors(parts)
    if "points" in parts and not bool((parts["points"].diff() > 0).all()):
        raise ArtifactError(f"{where}: {name}.points do not ascend")
    unpacked = unpack(packed, codes.bits, shape.numel()).reshape(shape).to(torch.int16) + codes.low
    return Encoded(unpacked.to(codes.dtype), parts["step"], grid)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
