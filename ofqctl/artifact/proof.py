"""Read written files again, as any reader does, and compare them with the original model."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ofqctl.artifact.tensors import fault_of, float_tensors, names_of_bounds, read_weight
from ofqctl.convert import operands, weight_site
from ofqctl.errors import ArtifactError
from ofqctl.hooks import in_evaluation_mode
from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, build_quantizer
from ofqctl.recipe import Plan

_SHOWN = 8


def check_written(tensors: Mapping[str, Tensor], model: nn.Module, plan: Plan, where: str) -> None:
    """Check that the tensors and the plan alone decode to exactly the values that ``model``, evaluated, computes with.

    Every quantizer is built again from the plan, as a reader does; the quantizers of the model are not used.

    Args:
        tensors: Tensors read from the file.
        model: The model that was written, with latent weights or fixed codes.
        plan: The plan in ``config.json``.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: Weights or quantizers differ; the message names them.
    """
    with torch.no_grad(), in_evaluation_mode(model):
        faults = [*_weights(tensors, model, plan, where), *_activations(model, plan), *_float_tensors(tensors, model)]
    if faults:
        shown = [*faults[:_SHOWN], *([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])]
        raise ArtifactError(
            "\n  ".join([f"{where}: the written file does not match the model; nothing was written:", *shown])
        )


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
            yield f"{name}: its plan does not contain {', '.join(left)}"
        elif not _same(encoded.decode().to(value.dtype), value):
            yield f"{name}: its codes, grid steps and points do not decode to the values that the model computes with"


def _activations(model: nn.Module, plan: Plan) -> Iterator[str]:
    for name, entry in plan.modules.items():
        for operand, quantizer in operands(model.get_submodule(name)).items():
            again = build_quantizer(entry.operands[operand])
            try:
                again.load_state_dict(quantizer.state_dict())
                different = not _same(_points(again), _points(quantizer))
            except RuntimeError as error:
                yield f"{name}: its plan gives its {operand} different tensors: {str(error).splitlines()[-1].strip()}"
                continue
            if different:
                yield f"{name}: its plan gives its {operand} a different grid"


def _float_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> Iterator[str]:
    bounds = names_of_bounds(model)
    for name, tensor in float_tensors(model).items():
        if name not in tensors or not _same(tensors[name], tensor.cpu()):
            yield f"{name}: is missing or differs from the model's"
        elif fault := fault_of(name, tensors[name], tensor, bound=name in bounds):
            yield fault


def _points(quantizer: Quantizer) -> Tensor:
    """All points of an activation quantizer: (codes, *shape of the grid step)."""
    codes, dimensions = quantizer.range.all(), len(quantizer.plan.step_shape)
    return quantizer.grid.points(codes.view(-1, *(1,) * dimensions).to(quantizer.step.device)).cpu()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
