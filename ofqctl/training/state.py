"""Where a training run stands: everything that an exact continuation needs, in one file."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofqctl.artifact.atomic import replaced_file
from ofqctl.errors import ArtifactError
from ofqctl.models import read_torch_file
from ofqctl.recipe import Recipe
from ofqctl.recipe.former import plan_from_format_1, recipe_from_format_1, with_current_keys

FILE = "last.pt"
VERSION = 2


@dataclass
class Position:
    """How far training is; the next step to take.

    Attributes:
        phase: Index of the phase.
        epoch: Epoch within the phase.
        step: Optimizer step within the epoch.
        phase_step: Optimizer steps of the phase that are done.
        total_epochs: Epochs done before this one, over all phases: decides order and augmentation.
        total_steps: Optimizer steps done over all phases.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    phase_step: int = 0
    total_epochs: int = 0
    total_steps: int = 0


@dataclass
class Meter:
    """Running means of an epoch, kept through interruptions.

    Attributes:
        loss: Sum of the losses of the steps.
        correct: Images whose label came first.
        images: Images seen.
        steps: Steps done.
        seconds: Spent in steps.
    """

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Checkpoint:
    """The contents of ``last.pt``; plain values and tensors only, so that it loads without running code.

    Attributes:
        recipe: The resolved recipe.
        plan: What is quantized.
        position: Where training stands.
        meter: Of the epoch under way.
        history: One row an epoch.
        model: State of the model, latent weights included.
        optimizer: State of the phase's optimizer.
        ema: State of the averaged model, or None.
        tracker: State of the oscillation tracker, or None.
        remedies: State of each of the phase's remedies.
        random: Generators of every process.
        request: What was asked for, recipe and output apart; empty where nobody said.
        version: Of this layout.
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
    version: int = field(default=VERSION)

    def save(self, directory: Path) -> None:
        """Write ``last.pt``, whole or not at all.

        Raises:
            ArtifactError: The disk is full or cannot be written; the previous file is intact.
        """
        with replaced_file(directory / FILE) as fresh:
            torch.save(asdict(self), fresh)


def read_checkpoint_state(directory: Path) -> Checkpoint:
    """Read ``last.pt``.

    Raises:
        ArtifactError: Missing, or written by another version.
        ModelError: Truncated or foreign.
    """
    path = directory / FILE
    if not path.is_file():
        raise ArtifactError(
            f"{directory}: no {FILE} in it, so there is nothing to resume",
            hint=f"`ofqctl train {directory} --output NEW` starts from a run that was quantized",
        )
    return checkpoint_of(read_torch_file(path), path)


def checkpoint_of(values: Any, path: Path) -> Checkpoint:
    """What was read from the file ``path``, as a training state.

    Raises:
        ArtifactError: It is none, or was written by another version.
    """
    if not isinstance(values, dict) or "position" not in values:
        raise ArtifactError(f"{path}: not a training state of ofqctl")
    version = values.get("version")
    if version not in (1, VERSION):
        raise ArtifactError(f"{path}: version {version!r}, this program reads versions 1 and {VERSION}")
    if version == 1:
        values = values | {
            "recipe": recipe_from_format_1(values["recipe"]),
            "plan": plan_from_format_1(values["plan"]),
            "version": VERSION,
        }
    recipe = Recipe.model_validate(with_current_keys(values["recipe"])).model_dump(
        mode="json"
    )  # with what is new at its default
    return Checkpoint(**values | {"recipe": recipe})


def random_state() -> dict[str, Any]:
    """All generators of this process, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Put the generators of this process back."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
