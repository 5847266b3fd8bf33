"""A quantized model <-> the tensors of ``model.safetensors``.

A quantized weight ``NAME`` is stored as ``NAME.codes`` (uint8, packed; code minus the grid's lowest), ``NAME.step``
and, where its grid has zero points, ``NAME.offset``; everything else lies under its name in the model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError
from ofqctl.grids import Encoded, code_dtype
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.packing import pack, packed_size, unpack


def to_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a quantized model: packed codes, steps, and what is float; on the CPU, in order of their names."""
    tensors: dict[str, Tensor] = {}
    replaced: set[str] = set()
    for name, site in weight_sites(model):
        encoded = site.encode_weight()
        assert encoded is not None
        tensors[f"{name}.codes"] = pack(encoded.codes.to(torch.int16) - encoded.grid.low, encoded.grid.bits)
        tensors[f"{name}.step"] = encoded.step
        if isinstance(encoded.offset, Tensor):
            tensors[f"{name}.offset"] = encoded.offset
        replaced |= _replaced_by_codes(name.removesuffix("weight"), site)
    own = {name: t for name, t in _own_tensors(model).items() if name not in replaced}
    tensors |= {name: t.float() if t.is_floating_point() else t for name, t in own.items()}
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
    rest = dict(tensors)
    known = _own_tensors(model)
    replaced: set[str] = set()
    for name, site in weight_sites(model):
        site.fix_codes(_read_codes(name, site, rest, where))
        replaced |= _replaced_by_codes(name.removesuffix("weight"), site)
    wanted = {name: tensor for name, tensor in known.items() if name not in replaced}
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


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``model``; of a module that several blocks share, only under the first of its names."""
    modules = {name for name, _ in model.named_modules()}
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] in modules}


def _replaced_by_codes(prefix: str, site: WeightSite) -> set[str]:
    """Names in the state dict that packed codes stand for: latent weights and the weight quantizer's own tensors."""
    assert site.weight_quantizer is not None
    own = {f"{prefix}weight_quantizer.{name}" for name in site.weight_quantizer.state_dict()}
    return own | {f"{prefix}{name}" for name in site.latent_names}


def _read_codes(name: str, site: WeightSite, rest: dict[str, Tensor], where: str) -> Encoded:
    """Take the parts of one weight out of ``rest``."""
    quantizer = site.weight_quantizer
    assert quantizer is not None
    packed, step = rest.pop(f"{name}.codes", None), rest.pop(f"{name}.step", None)
    offset = rest.pop(f"{name}.offset", None) if isinstance(quantizer.offset, Tensor) else quantizer.offset
    if packed is None or step is None or offset is None:
        raise ArtifactError(f"{where}: the codes, steps or offsets of {name} are missing")
    shape, grid = site.latent().shape, quantizer.grid
    expected = packed_size(shape.numel(), grid.bits)
    if packed.dtype != torch.uint8 or packed.shape != (expected,):
        raise ArtifactError(
            f"{where}: {name}.codes is {_kind(packed)}, but {tuple(shape)} at {grid.bits} bits takes {expected} bytes"
        )
    if step.shape != tuple(quantizer.plan.step_shape) or step.dtype != torch.float32:
        raise ArtifactError(f"{where}: {name}.step is {_kind(step)}, expected {quantizer.plan.step_shape} float32")
    codes = unpack(packed, grid.bits, shape.numel()).reshape(shape).to(torch.int16) + grid.low
    return Encoded(codes.to(code_dtype(grid)), step, offset, grid)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
