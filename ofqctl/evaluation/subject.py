"""What can be evaluated: a float model by name, or a run directory, behind one face."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ofqctl.artifact import WEIGHTS, Run, is_run, load_run, read_config
from ofqctl.data import LabelSpace
from ofqctl.errors import ArtifactError, ModelError
from ofqctl.models import LoadedModel, ModelRequest, load_model


@dataclass
class Subject:
    """A model that answers with logits, and how its images are to be prepared.

    Attributes:
        model: In evaluation mode.
        name: What a person calls it.
        kind: ``float`` or ``quantized``.
        data_config: Preprocessing, as timm's ``create_transform`` takes it.
        labels: What the outputs stand for.
        notes: What was guessed or changed on the way.
    """

    model: nn.Module
    name: str
    kind: str
    data_config: dict[str, Any]
    labels: LabelSpace
    notes: list[str] = field(default_factory=list)


def open_subject(request: ModelRequest) -> Subject:
    """A run directory (or the weights file in one) if ``request.name`` is the path of one, else a float model.

    Raises:
        ArtifactError: The run is damaged.
        ModelError: There is no such model, or it has no classifier.
    """
    path = Path(request.name)
    if is_run(path) or path.is_file():
        return _noting_unused(of_run(open_run(path)), request)
    if path.is_dir():
        raise ModelError(
            f"{path}: a folder without config.json is no run directory",
            hint=f"a float model in timm's layout is named `local-dir:{path}`",
        )
    inside = Path(request.name.removeprefix("local-dir:"))
    if holds_run(inside):
        return _noting_unused(of_run(open_run(inside)), request)
    if ":" not in request.name and len(path.parts) > 1:
        raise ModelError(
            f"{path}: there is no such run directory or file",
            hint=f"a model on the hub is named `hf-hub:{path}`",
        )
    return of_model(load_model(request))


def open_run(path: Path) -> Run:
    """A run directory, or the one that a ``model.safetensors`` lies in.

    Raises:
        ArtifactError: Another file, or the run is missing or damaged.
    """
    if path.is_file() and path.name != WEIGHTS:
        raise ArtifactError(
            f"{path}: not the {WEIGHTS} of a run directory",
            hint="float weights go to `--checkpoint FILE`, an OFQ .pth.tar to `ofqctl import`",
        )
    return load_run(path)


def holds_run(path: Path) -> bool:
    """Whether ``path`` is a run directory that this program wrote and can read, or the weights file of one."""
    if not is_run(path):
        return False
    try:
        read_config(path.parent if path.is_file() else path)
    except ArtifactError:
        return False
    return True


def _noting_unused(subject: Subject, request: ModelRequest) -> Subject:
    """``subject`` with a note on the options that say something about float models only."""
    given = {
        "--checkpoint": request.checkpoint,
        "--no-pretrained": not request.pretrained,
        "--num-classes": request.num_classes,
        "--img-size": request.img_size,
        "--model-kwargs": request.kwargs,
    }
    unused = [option for option, value in given.items() if value]
    if unused:
        subject.notes.append(f"{', '.join(unused)}: no effect on a run directory, which says all of it itself")
    return subject


def of_run(run: Run) -> Subject:
    """The quantized model of a run directory."""
    config = run.config
    names = None if config.label_names is None else tuple(config.label_names)
    labels = LabelSpace(config.num_classes, names)
    return Subject(run.model, str(run.directory), "quantized", config.data_config, labels)


def of_model(loaded: LoadedModel) -> Subject:
    """A float model.

    Raises:
        ModelError: It has no classifier.
    """
    if loaded.num_classes < 1:
        raise ModelError(f"{loaded.architecture}: has no classifier", hint="--num-classes N gives it one")
    names = loaded.pretrained_cfg.get("label_names")
    labels = LabelSpace(loaded.num_classes, tuple(names) if names else None)
    return Subject(loaded.model, loaded.architecture, "float", loaded.data_config, labels, list(loaded.notes))
