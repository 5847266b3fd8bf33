"""Inspect a run directory or an ONNX file: bits and grid of every module, and what the bytes are used for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ofqctl.artifact import sign_config
from ofqctl.convert import operands, weight_site
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import open_run
from ofqctl.grids import Grid, TableGrid
from ofqctl.layers import WeightSite
from ofqctl.models.hub import hub_id, split_id
from ofqctl.oscillation import role_of
from ofqctl.packing import packed_size
from ofqctl.progress import Progress, silent
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import ModulePlan
from ofqctl.results.inspect import (
    InspectedGrid,
    InspectedModule,
    InspectedQuantizer,
    InspectedRole,
    InspectedWeight,
    InspectRunResult,
)
from ofqctl.results.onnx import InspectOnnxResult
from ofqctl.results.size import LedgerWithRatio


@dataclass(frozen=True)
class InspectRequest:
    """A request to inspect a file.

    Attributes:
        run: A run directory, the weights file in one, ``hf-hub:ORG/NAME``, or an ONNX file.
        accept_config: Whether a ``config.json`` (or an ONNX file) that was changed by hand is accepted as it is now,
            here and from now on: its digest is written again.
    """

    run: str | Path
    accept_config: bool = False


def inspect(request: InspectRequest, progress: Progress = silent) -> InspectRunResult | InspectOnnxResult:
    """Describe a run directory, checked against its weights, or the content of an ONNX file.

    Raises:
        ArtifactError: The file is missing, truncated, foreign, of a future version, or was changed after writing.
    """
    path = Path(request.run)
    if path.suffix == ".onnx" and hub_id(str(path)) is None:
        return _onnx(path, progress, accept=request.accept_config)
    progress("read the run", 0, None)
    if request.accept_config:
        _accept(path)
    run = open_run(request.run)
    quantization = run.config.quantization_config
    ledger = run.ledger
    plans = quantization.plan.modules
    modules = [_module(run.model, name, plans[name]) for name, _ in run.model.named_modules() if name in plans]
    return InspectRunResult(
        run=run.name,
        model=run.config.architecture,
        num_classes=run.config.num_classes,
        input_size=run.config.input_size,
        source=run.config.source,
        recipe=quantization.recipe.name,
        format_version=quantization.format_version,
        written_by=f"ofqctl {quantization.written_by}",
        size=LedgerWithRatio(**dict(ledger), ratio=round(ledger.float_model / ledger.total, 3)),
        roles=_roles(modules),
        modules=tuple(modules),
        left_float=quantization.plan.left_float,
        results=run.results,
        notes=run.notes,
    )


def _roles(modules: Sequence[InspectedModule]) -> dict[str, InspectedRole]:
    """Sums over the modules of each role, in the order of the first module of each."""
    alike: dict[str, list[InspectedModule]] = {}
    for module in modules:
        alike.setdefault(role_of(module.name, module.kind), []).append(module)
    return {role: _role(members) for role, members in alike.items()}


def _role(modules: Sequence[InspectedModule]) -> InspectedRole:
    weights = [module.weight for module in modules if module.weight]
    taken = {quantizer.bits for module in modules for quantizer in module.activations.values()}
    return InspectedRole(
        modules=len(modules),
        weight_bits=tuple(sorted({weight.bits for weight in weights})),
        activation_bits=tuple(sorted(taken)),
        weights=sum(math.prod(weight.shape) for weight in weights),
        bytes=sum(weight.bytes for weight in weights),
    )


def _accept(path: Path) -> None:
    """Accept the ``config.json`` of a run as it is now.

    Raises:
        ArtifactError: It cannot be used or written, or lies on the hub.
    """
    if (repository := hub_id(str(path))) is not None:
        raise ArtifactError(
            f"hf-hub:{repository}: --accept-config changes a run, and this one lies on the hub",
            hint=f"`hf download {split_id(repository)[0]} --local-dir DIR`, then `ofqctl inspect DIR --accept-config`",
        )
    sign_config(path.parent if path.is_file() else path)


def _onnx(path: Path, progress: Progress, *, accept: bool) -> InspectOnnxResult:
    import onnxruntime

    from ofqctl.export import look_into, seal_again

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    if accept:
        seal_again(path)
    progress("load the file", 0, None)
    contents = look_into(path)
    known = contents.description is not None
    return InspectOnnxResult(
        onnx=str(path),
        **vars(contents),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        notes=() if known else (f"{path}: was not written by ofqctl; bits and products are unknown",),
    )


def _module(model: nn.Module, name: str, plan: ModulePlan) -> InspectedModule:
    module = model.get_submodule(name)
    site = weight_site(module)
    return InspectedModule(
        name=name,
        kind=plan.kind,
        weight=None if site is None or site.weight_quantizer is None else _weight(site),
        activations={operand: _quantizer(q, q.grid) for operand, q in operands(module).items()},
    )


def _weight(site: WeightSite) -> InspectedWeight:
    encoded = site.encode_weight()
    assert site.weight_quantizer is not None and encoded is not None
    shape, bits = encoded.codes.shape, encoded.grid.range.bits
    quantizer = _quantizer(site.weight_quantizer, encoded.grid)
    return InspectedWeight(**dict(quantizer), shape=tuple(shape), bytes=packed_size(shape.numel(), bits))


def _quantizer(quantizer: Quantizer, grid: Grid) -> InspectedQuantizer:
    return InspectedQuantizer(
        bits=grid.range.bits,
        method=quantizer.plan.method,
        grid=_grid(grid),
        step_shape=quantizer.plan.step_shape,
        dynamic=quantizer.plan.dynamic,
        shifts=quantizer.before is not None,
    )


def _grid(grid: Grid) -> InspectedGrid:
    low, high = grid.range.low, grid.range.high
    if isinstance(grid, TableGrid):
        own = None if grid.thresholds is None else tuple(grid.thresholds.tolist())
        return InspectedGrid(low=low, high=high, points=tuple(grid.table.tolist()), thresholds=own)
    offsets = grid.points(torch.zeros(()))
    return InspectedGrid(low=low, high=high, offset=(float(offsets.min()), float(offsets.max())))
