"""The layout of compressed-tensors (`pack-quantized`), for models with only weights quantized."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofqctl.artifact import Run
from ofqctl.artifact.tensors import to_tensors
from ofqctl.convert import weight_site
from ofqctl.errors import ArtifactError
from ofqctl.files import RUN_FILES, WEIGHTS, replaced_files
from ofqctl.grids import Encoded, Grid
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.recipe import ModulePlan


def check_representable(run: Run, where: str) -> None:
    """Check that the layout can represent a model: only Linear weights, with integers symmetric around 0.

    Raises:
        ArtifactError: It cannot; the message names the first modules and why.
    """
    plan = run.config.quantization_config.plan
    modules = {name: (entry, weight_site(run.model.get_submodule(name))) for name, entry in plan.modules.items()}
    reasons = {name: reason for name, (entry, site) in modules.items() if (reason := _obstacle(entry, site))}
    reasons |= dict.fromkeys(plan.replaced, "an RMSNorm stands in place of the architecture's LayerNorm")
    if not plan.modules:
        raise ArtifactError(f"{where}: nothing is quantized, so there is nothing to pack")
    if reasons:
        shown = [f"{name}: {reason}" for name, reason in list(reasons.items())[:3]]
        raise ArtifactError(
            "\n  ".join([f"{where}: compressed-tensors cannot represent {len(reasons)} of its modules:", *shown]),
            hint="--layout ofqctl can represent every model",
        )


def _obstacle(module: ModulePlan, site: WeightSite | None) -> str | None:
    if module.operands:
        return f"the operands {', '.join(module.operands)} have static grid steps and grids of their own"
    if module.kind == "qkr":
        return "query and key are merged, which is not a Linear layer"
    encoded = None if site is None else site.encode_weight()
    return None if encoded is None else _obstacle_of_grid(encoded.grid)


def _obstacle_of_grid(grid: Grid) -> str | None:
    integers, codes = grid.on_integers(), grid.range
    if integers is None or not integers.even:
        return "the points of its grid are not evenly spaced"
    if integers.multiplier == 2:
        return "its grid is half a step off 0"
    if not codes.signed or bool((integers.zero != codes.low).any() or integers.rest.any()):
        return "its grid has zero points"
    return None


def write_compressed(directory: Path, run: Run) -> None:
    """Write ``config.json`` and ``model.safetensors``; convolutions are decoded to float.

    Raises:
        ArtifactError: The disk is full or cannot be written.
    """
    tensors = to_tensors(run.model)
    groups: dict[int, list[str]] = {}
    ignored = []
    for name, site in weight_sites(run.model):
        encoded = site.encode_weight()
        assert encoded is not None
        for part in (".codes", ".step"):
            del tensors[name + part]
        module = name.removesuffix(".weight")
        if encoded.codes.ndim != 2:
            tensors[name] = encoded.decode()
            ignored.append(module)
            continue
        tensors |= _packed(name, encoded)
        groups.setdefault(encoded.grid.range.bits, []).append(module)
    config = json.loads(run.config.to_json())
    ignored += [left.module for left in run.config.quantization_config.plan.left_float]
    config["quantization_config"] = _quantization_config(groups, ignored)
    with replaced_files(directory, removed=RUN_FILES) as fresh:
        (fresh / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        content = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
        (fresh / WEIGHTS).write_bytes(safetensors.torch.save(content, metadata={"format": "pt"}))


def _packed(name: str, encoded: Encoded) -> dict[str, Tensor]:
    """The tensors to store for one weight (out, in)."""
    rows = encoded.codes.shape[0]
    codes = encoded.grid.range
    unsigned = (encoded.codes.to(torch.int16) + (1 << (codes.bits - 1))).cpu().numpy().astype(np.uint32)
    return {
        f"{name}_packed": torch.from_numpy(pack_words(unsigned, codes.bits)),
        f"{name}_scale": encoded.step.detach().cpu().reshape(-1, 1).expand(rows, 1).clone(),
        f"{name}_shape": torch.tensor(encoded.codes.shape, dtype=torch.int64),
    }


def pack_words(codes: NDArray[np.uint32], bits: int) -> NDArray[np.int32]:
    """Pack the codes of each row (out, in) into 32-bit words, lowest bits first; no code is split between words."""
    each = 32 // bits
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % each)])
    shifts = (np.arange(each, dtype=np.uint32) * bits).astype(np.uint32)
    words = padded.reshape(len(codes), -1, each) << shifts
    packed: NDArray[np.int32] = np.bitwise_or.reduce(words, axis=2).astype(np.uint32).view(np.int32)
    return packed


def _quantization_config(groups: dict[int, list[str]], ignored: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {
            f"group_{index}": {
                "targets": modules,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel",
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, (bits, modules) in enumerate(sorted(groups.items()))
        },
    }
