"""What was written, read again as any reader does, against the model that it was written from."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ofqctl.artifact.tensors import float_tensors, read_weight
from ofqctl.convert import operands, weight_site
from ofqctl.errors import ArtifactError
from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, build_quantizer
from ofqctl.recipe import Plan

_SHOWN = 8


def check_written(tensors: Mapping[str, Tensor], model: nn.Module, plan: Plan, where: str) -> None:
    """Make sure that tensors and plan alone give what ``model`` computes with, to the bit.

    Every quantizer is built again from the plan, as a reader does; what the model's own say of themselves is not used.

    Args:
        tensors: Read from the file.
        model: What was written, latent or with fixed codes.
        plan: What ``config.json`` says.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: Names the weights and quantizers that a reader would take for others.
    """
    with torch.no_grad():
        faults = [*_weights(tensors, model, plan, where), *_activations(model, plan), *_float_tensors(tensors, model)]
    if faults:
        shown = [*faults[:_SHOWN], *([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])]
        raise ArtifactError("\n  ".join([f"{where}: read again, it is another model; nothing was written:", *shown]))


def _weights(tensors: Mapping[str, Tensor], model: nn.Module, plan: Plan, where: str) -> Iterator[str]:
    plans = {weight_site(model.get_submodule(name)): entry.weight for name, entry in plan.modules.items()}
    rest = dict(tensors)
    for name, site in weight_sites(model):
        weight_plan, value = plans[site], site.quantized_weight().cpu()
        assert weight_plan is not None
        try:
            encoded = read_weight(name, build_quantizer(weight_plan), value.shape, rest, where)
        except ArtifactError as error:
            yield str(error)
            continue
        left = [part for part in rest if part.startswith(f"{name}.")]
        if left:
            yield f"{name}: its plan knows nothing of {', '.join(left)}"
        elif not _same(encoded.decode(), value):
            yield f"{name}: its codes, steps and points give other values than the model computes with"


def _activations(model: nn.Module, plan: Plan) -> Iterator[str]:
    for name, entry in plan.modules.items():
        for operand, quantizer in operands(model.get_submodule(name)).items():
            again = build_quantizer(entry.operands[operand])
            try:
                again.load_state_dict(quantizer.state_dict())
                different = not _same(_points(again), _points(quantizer))
            except RuntimeError as error:
                yield f"{name}: its plan gives its {operand} other tensors: {str(error).splitlines()[-1].strip()}"
                continue
            if different:
                yield f"{name}: its plan gives its {operand} another grid"


def _float_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> Iterator[str]:
    for name, tensor in float_tensors(model).items():
        if name not in tensors or not _same(tensors[name], tensor.cpu()):
            yield f"{name}: is missing or has other values than the model's"


def _points(quantizer: Quantizer) -> Tensor:
    """Every point of an activation quantizer: (codes, *shape of the step)."""
    codes, dimensions = quantizer.range.all(), len(quantizer.plan.step_shape)
    return quantizer.grid.points(codes.view(-1, *(1,) * dimensions).to(quantizer.step.device)).cpu()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, NaN and NaN too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
