"""Requests to train, and how runs record them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.documents import field_fault
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.models import ModelRequest
from ofqctl.recipe import Recipe
from ofqctl.training import FILE, Checkpoint, LogName, read_checkpoint_state

_NOT_KEPT = {"recipe", "output", "overwrite", "resume", "force_recipe", "check_data", "time_budget"}
_DECISIVE = ("seed", "amp", "grad_accum")  # other values of these change the result
_SHOWN = 12


@dataclass(frozen=True)
class TrainRequest:
    """A request to train a model.

    Attributes:
        model: A float model, or the path of a run.
        recipe: The recipe, with a ``training`` part.
        data: Training images; with labels, if the recipe learns from labels.
        val_data: Images that are measured after every epoch, or None; labelled ones for a classifier.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        overwrite: Whether to replace an existing run.
        resume: The run to continue, which is then also ``output``; ``auto`` continues the one in ``output``, if there
            is one.
        force_recipe: Whether to resume even if the request differs from that of the run.
        check_data: Whether the headers of all images are looked at before training.
        time_budget: Seconds for all of it: at most half for stages ahead of training, then as many epochs of the recipe
            as fit; None sets no limit. A run that is resumed has the epochs that it began with.
        seed: Seed of random weights, order and augmentation.
        device: Device to compute on.
        amp: Whether to autocast to bfloat16.
        compiled: Whether the quantizers are compiled.
        grad_accum: Number of forward passes in one optimizer step.
        checkpoint_every: Optimizer steps between checkpoints within an epoch; 0 saves after epochs only.
        workers: Number of processes that decode images.
        soft_labels: File of soft labels, whose crops are trained on in place of asking the teacher; or None.
        logs: Programs that figures are logged with, beside the run's own tables.
    """

    model: ModelRequest
    recipe: Recipe
    data: DataSpec
    val_data: DataSpec | None = None
    output: Path | None = None
    overwrite: bool = False
    resume: Path | Literal["auto"] | None = None
    force_recipe: bool = False
    check_data: bool = False
    time_budget: float | None = None
    seed: int = 0
    device: DeviceName = "auto"
    amp: bool = False
    compiled: bool = False
    grad_accum: int = 1
    checkpoint_every: int = 0
    workers: int = 0
    soft_labels: Path | None = None
    logs: tuple[LogName, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """The part that checkpoints record, beside the recipe, as plain values."""
        values: dict[str, Any] = TypeAdapter(TrainRequest).dump_python(self, mode="json", exclude=_NOT_KEPT)
        return values


def recorded_request(directory: Path) -> TrainRequest:
    """The recorded request of the run in ``directory``, as a request to continue it.

    Raises:
        ArtifactError: There is no training run, or it has no recorded request.
    """
    checkpoint = read_checkpoint_state(directory, resumed=True)
    if not checkpoint.request:
        raise ArtifactError(
            f"{directory}: its training state has no recorded request",
            hint=f"give model, recipe and data again, with --output {directory} --resume auto",
        )
    values = checkpoint.request | {"recipe": checkpoint.recipe, "resume": directory}
    try:
        return TypeAdapter(TrainRequest).validate_python(values)
    except ValidationError as error:
        raise ArtifactError(f"{directory / FILE}: request: {field_fault(error)}") from error


def check_same(checkpoint: Checkpoint, request: TrainRequest, world: int, where: Path) -> None:
    """Check that the request is the same as that of the run.

    Raises:
        RecipeError: It differs; the message lists the differences.
    """
    recorded = {key: checkpoint.request[key] for key in _DECISIVE if key in checkpoint.request}
    now = {key: getattr(request, key) for key in recorded} | {"processes": world}
    recorded["processes"] = len(checkpoint.random)
    recipe = request.recipe.model_dump(mode="json")
    found = [*_differences(checkpoint.recipe, recipe), *_differences(recorded, now)]
    _refuse(where, "with another recipe or other options", [f for f in found if f[0] not in ("name", "description")])


def check_same_data(checkpoint: Checkpoint, identity: dict[str, Any], where: Path) -> list[str]:
    """Check that the training images are the same as those of the run; for runs of before, note that nobody knows.

    Raises:
        RecipeError: They differ in number, classes, names or sizes; the message lists the differences.
    """
    if not checkpoint.data:
        return [f"{where}: its training state does not say on which images; that they are the same is not checked"]
    _refuse(where, "on other data", _differences({"data": checkpoint.data}, {"data": identity}))
    return []


def _refuse(where: Path, how: str, found: list[tuple[str, Any, Any]]) -> None:
    """Raise an error that lists the differences to the run, if there are any."""
    if found:
        told = [f"{path}: {a!r} in the run, {b!r} now" for path, a, b in found[:_SHOWN]]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise RecipeError(
            "\n  ".join([f"{where}: was trained {how}:", *told, *more]),
            hint="--force-recipe continues with the new ones",
        )


def _by_place(values: list[Any]) -> dict[str, Any]:
    return {str(place): value for place, value in enumerate(values)}


def _differences(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The differences of two nested values: path, one value, other value."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [
            found
            for key in keys
            for found in _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return _differences(_by_place(one), _by_place(other), path)
    return [] if one == other else [(path, one, other)]
