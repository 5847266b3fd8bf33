"""What ``train`` is asked to do, and how a run remembers that."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.models import ModelRequest
from ofqctl.recipe import Recipe
from ofqctl.training import Checkpoint, LogName, read_checkpoint_state

_NOT_KEPT = {"recipe", "output", "overwrite", "resume", "force_recipe"}
_DECISIVE = ("seed", "amp", "grad_accum")  # with another value of these the result is another one
_SHOWN = 12


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, and where to write it.

    Attributes:
        model: A float model, or the path of a run.
        recipe: With a ``training`` part.
        data: Labelled training images.
        val_data: Labelled images that are measured after every epoch, or None.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        overwrite: Whether to replace an existing run.
        resume: The run to continue, which ``output`` is then; ``auto`` continues the one in ``output`` if there is one.
        force_recipe: Resume although something else is asked for than the run was.
        seed: Decides random weights, order and augmentation.
        device: Where to compute.
        amp: Autocast to bfloat16.
        compiled: Compile the quantizers' arithmetic.
        grad_accum: Forward passes in one optimizer step.
        checkpoint_every: Steps between checkpoints within an epoch; 0 saves after epochs only.
        workers: Processes that decode images.
        logs: Where figures go beside the run's own tables.
    """

    model: ModelRequest
    recipe: Recipe
    data: DataSpec
    val_data: DataSpec | None = None
    output: Path | None = None
    overwrite: bool = False
    resume: Path | Literal["auto"] | None = None
    force_recipe: bool = False
    seed: int = 0
    device: DeviceName = "auto"
    amp: bool = False
    compiled: bool = False
    grad_accum: int = 1
    checkpoint_every: int = 0
    workers: int = 0
    logs: tuple[LogName, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, beside the recipe: plain values."""
        values: dict[str, Any] = TypeAdapter(TrainRequest).dump_python(self, mode="json", exclude=_NOT_KEPT)
        return values


def recorded_request(directory: Path) -> TrainRequest:
    """What the run in ``directory`` was asked to do, as a request to go on with it.

    Raises:
        ArtifactError: There is no training run, or it does not say.
    """
    checkpoint = read_checkpoint_state(directory)
    if not checkpoint.request:
        raise ArtifactError(
            f"{directory}: its training state does not say what it was asked to do",
            hint=f"give model, recipe and data again, with --output {directory} --resume auto",
        )
    values = checkpoint.request | {"recipe": checkpoint.recipe, "resume": directory}
    return TypeAdapter(TrainRequest).validate_python(values)


def check_same(checkpoint: Checkpoint, request: TrainRequest, world: int, where: Path) -> None:
    """Refuse to go on with something else than the run was asked to do.

    Raises:
        RecipeError: Lists what differs.
    """
    recorded = {key: checkpoint.request[key] for key in _DECISIVE if key in checkpoint.request}
    now = {key: getattr(request, key) for key in recorded} | {"processes": world}
    recorded["processes"] = len(checkpoint.random)
    recipe = request.recipe.model_dump(mode="json")
    found = [*_differences(checkpoint.recipe, recipe), *_differences(recorded, now)]
    told = [f"{path}: {a!r} in the run, {b!r} now" for path, a, b in found if path not in ("name", "description")]
    if told:
        more = [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        raise RecipeError(
            "\n  ".join([f"{where}: was trained with another recipe or otherwise:", *told[:_SHOWN], *more]),
            hint="--force-recipe continues with what is asked for now",
        )


def _by_place(values: list[Any]) -> dict[str, Any]:
    return {str(place): value for place, value in enumerate(values)}


def _differences(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested values differ: path, one value, other value."""
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
