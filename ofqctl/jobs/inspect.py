"""Inspect a run directory or an ONNX file: bits and grid of every module, and what the bytes are used for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofqctl.artifact import sign_config
from ofqctl.convert import operands, weight_site
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import open_run
from ofqctl.grids import Grid, TableGrid
from ofqctl.layers import WeightSite
from ofqctl.packing import packed_size
from ofqctl.progress import Progress, silent
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import ModulePlan


@dataclass(frozen=True)
class InspectRequest:
    """A request to inspect a file.

    Attributes:
        run: A run directory, the weights file in one, or an ONNX file.
        accept_config: Whether a ``config.json`` (or an ONNX file) that was changed by hand is accepted as it is now,
            here and from now on: its digest is written again.
    """

    run: Path
    accept_config: bool = False


def inspect(request: InspectRequest, progress: Progress = silent) -> dict[str, Any]:
    """Describe a run directory, checked against its weights, or the content of an ONNX file.

    Raises:
        ArtifactError: The file is missing, truncated, foreign, of a future version, or was changed after writing.
    """
    if request.run.suffix == ".onnx":
        return _onnx(request, progress)
    progress("read the run", 0, None)
    if request.accept_config:
        sign_config(request.run.parent if request.run.is_file() else request.run)
    run = open_run(request.run)
    quantization = run.config.quantization_config
    ledger = run.ledger
    return {
        "run": str(run.directory),
        "model": run.config.architecture,
        "num_classes": run.config.num_classes,
        "input_size": list(run.config.input_size),
        "source": run.config.source,
        "recipe": quantization.recipe.name,
        "format_version": quantization.format_version,
        "written_by": f"ofqctl {quantization.written_by}",
        "size": ledger.as_dict() | {"ratio": round(ledger.float_model / ledger.total, 3)},
        "modules": [_module(run.model, name, plan) for name, plan in quantization.plan.modules.items()],
        "left_float": [left.model_dump() for left in quantization.plan.left_float],
        "results": run.results,
        "notes": list(run.notes),
    }


def _onnx(request: InspectRequest, progress: Progress) -> dict[str, Any]:
    import onnxruntime

    from ofqctl.export import look_into, seal_again

    path = request.run
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    if request.accept_config:
        seal_again(path)
    progress("load the file", 0, None)
    contents = asdict(look_into(path))
    description = contents.pop("description")
    return {
        "onnx": str(path),
        "description": None if description is None else description.model_dump(mode="json"),
        **contents,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "notes": [] if description else [f"{path}: was not written by ofqctl; bits and products are unknown"],
    }


def _module(model: nn.Module, name: str, plan: ModulePlan) -> dict[str, Any]:
    module = model.get_submodule(name)
    site = weight_site(module)
    return {
        "name": name,
        "kind": plan.kind,
        "weight": None if site is None or site.weight_quantizer is None else _weight(site),
        "activations": {operand: _quantizer(q, q.grid) for operand, q in operands(module).items()},
    }


def _weight(site: WeightSite) -> dict[str, Any]:
    encoded = site.encode_weight()
    assert site.weight_quantizer is not None and encoded is not None
    shape, bits = encoded.codes.shape, encoded.grid.range.bits
    stored = {"shape": list(shape), "bytes": packed_size(shape.numel(), bits)}
    return _quantizer(site.weight_quantizer, encoded.grid) | stored


def _quantizer(quantizer: Quantizer, grid: Grid) -> dict[str, Any]:
    """Bits, method, grid, and shape of the grid step."""
    return {
        "bits": grid.range.bits,
        "method": quantizer.plan.method,
        "grid": {"low": grid.range.low, "high": grid.range.high} | _points(grid),
        "step_shape": list(quantizer.plan.step_shape),
        "dynamic": quantizer.plan.dynamic,
        "shifts": quantizer.before is not None,
    }


def _points(grid: Grid) -> dict[str, list[float]]:
    """The points of a table, in grid steps; else the smallest and the largest offset."""
    if isinstance(grid, TableGrid):
        return {"points": grid.table.tolist()}
    offsets = grid.points(torch.zeros(()))
    return {"offset": [float(offsets.min()), float(offsets.max())]}
