"""Compare runs side by side by their files, without loading weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofqctl.artifact import is_run, read_results, weights_size
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import FoundRun, hub_run
from ofqctl.models.hub import hub_id
from ofqctl.results.analyze_oscillation import Epoch
from ofqctl.results.compare import ComparedRun, Comparison


def compared(paths: Sequence[Path]) -> Comparison:
    """Compare runs.

    Raises:
        ArtifactError: A path is not a run directory, or a file of it is damaged.
    """
    notes: list[str] = []
    runs = tuple(_run(path, notes) for path in paths)
    data = sorted({run.measured_on for run in runs if run.measured_on})
    if len(data) > 1:
        notes.append(f"top-1 was measured on data with different names: {', '.join(data)}")
    models = sorted({run.model for run in runs})
    if len(models) > 1:
        notes.append(f"the runs are of different models: {', '.join(models)}")
    return Comparison(runs=runs, notes=tuple(notes))


def _run(path: Path, notes: list[str]) -> ComparedRun:
    if hub_id(str(path)) is not None:
        found = hub_run(path)
    elif is_run(path):
        found = FoundRun(path)
    else:
        raise ArtifactError(f"{path}: not a run directory", hint="`ofqctl quantize` and `ofqctl train` write them")
    directory, config = found.directory, found.config()
    results, own = read_results(directory)
    notes.extend(own)
    recipe = config.quantization_config.recipe
    rows: list[dict[str, Any]] = (results.get("training") or {}).get("epochs", [])
    last = rows[-1] if rows else {}
    top1, measured_on = _accuracy(results.get("evaluation") or {})
    return ComparedRun(
        run=found.name,
        model=config.architecture,
        recipe=recipe.name,
        weight_bits=recipe.weights.bits,
        activation_bits=recipe.activations.bits,
        bytes=weights_size(directory, config),
        top1=top1,
        measured_on=measured_on,
        oscillating=last.get("oscillating"),
        flips_per_step=last.get("flips_per_step"),
        seconds=sum(row.get("seconds", 0.0) for row in rows) if rows else None,
        seed=results.get("seed"),
        epochs=tuple(Epoch.model_validate({key: row.get(key) for key in Epoch.model_fields}) for row in rows),
    )


def _accuracy(evaluation: dict[str, Any]) -> tuple[float | None, str | None]:
    """Top-1 accuracy of a quantized or trained run in percent, and what it was measured on."""
    top1 = (evaluation.get("quantized") or {}).get("top1", evaluation.get("val_top1"))
    return top1, None if top1 is None else evaluation.get("data")
