"""The state of a training run: everything that is needed to continue it exactly, in one file."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from ofqctl.documents import checked, field_fault, fitting, short
from ofqctl.errors import ArtifactError
from ofqctl.files import NEXT_STATE, TRAINING_STATE, located, replaced_file
from ofqctl.models import read_torch_file
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.former import plan_from_format_1, recipe_from_format_1, with_current_keys
from ofqctl.results.train import TrainedEpoch

FILE = TRAINING_STATE
VERSION = 2

_Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass
class Position:
    """The position of training: the next optimizer step to take.

    Attributes:
        phase: Index of the phase.
        epoch: Epoch within the phase.
        step: Optimizer step within the epoch.
        phase_step: Number of optimizer steps done in the phase.
        total_epochs: Number of epochs before this one, over all phases; decides order and augmentation.
        total_steps: Number of optimizer steps done, over all phases.
    """

    phase: _Count = 0
    epoch: _Count = 0
    step: _Count = 0
    phase_step: _Count = 0
    total_epochs: _Count = 0
    total_steps: _Count = 0


@dataclass
class Meter:
    """Sums for the figures of an epoch, which survive interruptions.

    Attributes:
        loss: Sum of the losses of the optimizer steps.
        correct: Number of correct predictions.
        images: Number of images.
        steps: Number of optimizer steps.
        seconds: Time spent in optimizer steps.
    """

    loss: float = 0.0
    correct: _Count = 0
    images: _Count = 0
    steps: _Count = 0
    seconds: float = 0.0


@dataclass
class Checkpoint:
    """The contents of ``last.pt``; plain values and tensors only, so that it loads without running code.

    Attributes:
        recipe: The recipe, with all defaults.
        plan: The plan that the model was quantized by.
        position: Position of training.
        meter: Meter of the current epoch.
        history: One row for each epoch.
        model: State of the model, including latent weights.
        optimizer: State of the phase's optimizer.
        ema: State of the averaged model, or None.
        tracker: State of the oscillation tracker, or None.
        remedies: States of the phase's remedies.
        random: States of the random generators of every process.
        request: The request, without recipe and output; empty if unknown.
        data: Identity of the training images; empty if unknown.
        skipped: The training images that could not be used so far, each with the reason.
        version: Version of this layout.
    """

    recipe: dict[str, Any]
    plan: dict[str, Any]
    position: dict[str, int]
    meter: dict[str, Any]
    history: list[dict[str, Any]]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    ema: dict[str, Any] | None
    tracker: dict[str, Any] | None
    remedies: list[dict[str, Any]]
    random: list[dict[str, Any]]
    request: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    version: int = field(default=VERSION)

    def save(self, directory: Path, name: str = FILE) -> None:
        """Write the file ``name``, at one moment.

        Raises:
            ArtifactError: The disk is full or cannot be written; the previous file is intact.
        """
        with replaced_file(directory / name) as fresh:
            torch.save(vars(self), fresh)


def state_to_resume(directory: Path) -> Path:
    """The state of the training in ``directory``: that of one which will replace the run there, if there is one."""
    following = located(directory, NEXT_STATE)
    return following if following.is_file() else located(directory, FILE)


def read_checkpoint_state(directory: Path, *, resumed: bool = False) -> Checkpoint:
    """Read the training state of the run in ``directory``, ``last.pt``.

    Args:
        directory: The run directory.
        resumed: Whether to read the state to continue from, see :func:`state_to_resume`.

    Raises:
        ArtifactError: The file is missing, or of an unknown version.
        ModelError: The file is truncated or foreign.
    """
    path = state_to_resume(directory) if resumed else located(directory, FILE)
    if not path.is_file():
        raise ArtifactError(
            f"{directory}: no {FILE} in it, so there is nothing to resume",
            hint=f"`ofqctl train {directory} --output NEW` starts from a quantized run",
        )
    return checkpoint_of(read_torch_file(path), path)


def checkpoint_of(values: Any, path: Path) -> Checkpoint:
    """Check the content of the file ``path`` and return the training state.

    Raises:
        ArtifactError: It is not a training state, of an unknown version, or a field of it cannot be used.
    """
    if not isinstance(values, dict) or "position" not in values:
        raise ArtifactError(f"{path}: not a training state of ofqctl")
    version = values.get("version")
    if isinstance(version, Tensor) or version not in (1, VERSION):
        raise ArtifactError(f"{path}: version {version!r}, this program reads versions 1 and {VERSION}")
    if version == 1:
        with fitting(f"{path}: its recipe and plan cannot be read"):
            values = values | {
                "recipe": recipe_from_format_1(values["recipe"]),
                "plan": plan_from_format_1(values["plan"]),
                "version": VERSION,
            }
    with fitting(f"{path}: its recipe cannot be read"):
        stored = values | {"recipe": with_current_keys(values["recipe"])}
    recipe = checked(Recipe, stored["recipe"], f"{path}: recipe")
    checked(Plan, values.get("plan"), f"{path}: plan")
    return _typed(stored | {"recipe": recipe.model_dump(mode="json")}, path)  # new keys get their defaults


def _typed(values: dict[str, Any], path: Path) -> Checkpoint:
    """The fields, each of its type, with finite weights."""
    unknown = values.keys() - {own.name for own in fields(Checkpoint)}
    if unknown:
        raise ArtifactError(f"{path}: has an unknown field {short(min(unknown, key=str))}")
    try:
        TypeAdapter(Checkpoint).validate_python(values)
        position = TypeAdapter(Position).validate_python(values["position"])
        meter = TypeAdapter(Meter).validate_python(values["meter"])
        TypeAdapter(dict[str, list[TrainedEpoch]]).validate_python({"history": values["history"]})
    except (ValidationError, LookupError) as fault:
        raise ArtifactError(f"{path}: {field_fault(fault)}") from fault
    if values["position"].keys() != asdict(Position()).keys():
        raise ArtifactError(f"{path}: position: {short(values['position'])}; allowed: a number from 0 for each field")
    for part in ("model", "ema"):
        for name, tensor in (values[part] or {}).items():
            if not isinstance(tensor, Tensor):
                raise ArtifactError(f"{path}: {part}: {short(name)} is not a tensor")
            if tensor.is_floating_point() and (bad := int((~tensor.isfinite()).sum())):
                raise ArtifactError(f"{path}: {part}: {name} has {bad} values that are NaN or infinite")
    return Checkpoint(**values | {"position": asdict(position), "meter": asdict(meter)})
