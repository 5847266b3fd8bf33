"""What can be evaluated, behind one interface: a float model by name, a run directory, or an ONNX file."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ofqctl.artifact import Run, is_run, read_config
from ofqctl.convert import takes_any_size
from ofqctl.data import LabelSpace, names_of
from ofqctl.errors import ArtifactError, ModelError
from ofqctl.evaluation.runs import find_run, holds_run, open_run
from ofqctl.models import LoadedModel, ModelRequest, gives, load_model
from ofqctl.models.building import check_forward, height_width
from ofqctl.models.outputs import leave_out_classifier
from ofqctl.models.preprocessing import check_data_config
from ofqctl.results.document import Gives
from ofqctl.results.evaluate import Kind

if TYPE_CHECKING:
    from ofqctl.export import OnnxModel

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, in 0..1
_COMMON_PREPARATION = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}

_WORDS = {"run": "a run directory", "onnx": "an ONNX file"}


@dataclass
class Subject:
    """A model that computes logits or embeddings, with the preprocessing of its images.

    Attributes:
        model: The model, in evaluation mode.
        name: Its name for the user.
        kind: ``float`` (a model by name), ``run`` or ``onnx``.
        data_config: Preprocessing, as timm's ``create_transform`` takes it.
        labels: Meaning of the outputs; of 0 classes if the model gives embeddings.
        about: Its ``architecture``, the ``model_args`` that build it, the ``source`` of its weights and, for a run or a
            file exported from one, the name of the ``recipe``; for a run also the ``sha256`` of its weights.
        notes: What was guessed or changed, one sentence each.
        run: The run, if it is one.
    """

    model: nn.Module
    name: str
    kind: Kind
    data_config: dict[str, Any]
    labels: LabelSpace
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    run: Run | None = None

    @property
    def gives(self) -> Gives:
        """What the outputs are: classes, or embeddings of a model without a classifier."""
        return gives(self.labels.num_classes)

    @property
    def embeds(self) -> bool:
        """Whether the outputs are embeddings."""
        return self.gives == "embeddings"


def open_subject(request: ModelRequest, normalization: Normalization | None = None) -> Subject:
    """Open an ONNX file or a run if ``request.name`` is the path of one, or a run on the hub; else a float model.

    Args:
        request: Says which model to open.
        normalization: Mean and standard deviation of the images, for an ONNX file that does not contain them.

    Raises:
        ArtifactError: The run or file is damaged, or does not say how images are preprocessed.
        ModelError: There is no such model.
    """
    path = Path(request.name)
    if path.suffix == ".onnx" and path.is_file():
        return _noting_unused(of_onnx(path, normalization), request)
    if normalization is not None:
        raise ModelError(f"{path}: --mean and --std are for ONNX files without this information; this model has it")
    if is_run(path) or path.is_file():
        return _noting_unused(_of_run(open_run(path), request), request)
    if path.is_dir():
        raise ModelError(
            f"{path}: not a run directory: there is no config.json in this folder",
            hint=f"a float model in timm's layout is named `local-dir:{path}`",
        )
    if (found := find_run(request.name)) is not None:
        return _noting_unused(_of_run(found.load(), request), request)
    if ":" not in request.name and len(path.parts) > 1:
        raise ModelError(
            f"{path}: no such run directory or file",
            hint=f"a model on the hub is named `hf-hub:{path}`",
        )
    return of_model(load_model(request))


def _noting_unused(subject: Subject, request: ModelRequest) -> Subject:
    """``subject`` with a note on given options that apply to float models only."""
    given = {
        "--checkpoint": request.checkpoint,
        "--no-pretrained": not request.pretrained,
        "--num-classes": request.num_classes,
        "--features": request.features and not subject.embeds,
        "--img-size": None if _has_size(subject, request.img_size) else request.img_size,
        "--model-kwargs": request.kwargs,
    }
    unused = [option for option, value in given.items() if value]
    if unused:
        subject.notes.append(
            f"{', '.join(unused)}: no effect on {_WORDS[subject.kind]}, which contains this information"
        )
    return subject


def _has_size(subject: Subject, size: int | tuple[int, int] | None) -> bool:
    return size is not None and list(subject.data_config["input_size"][1:]) == height_width(size)


def of_run(run: Run) -> Subject:
    """The subject for a run."""
    config = run.config
    names = names_of(config.pretrained_cfg, config.num_classes, config.label_names)
    labels = LabelSpace(config.num_classes, names)
    about = {
        "architecture": config.architecture,
        "model_args": config.model_args,
        "source": config.source,
        "recipe": config.quantization_config.recipe.name,
        "sha256": config.quantization_config.sha256,
    }
    return Subject(run.model, run.name, "run", config.data_config, labels, about, list(run.notes), run)


def _of_run(run: Run, request: ModelRequest) -> Subject:
    """The subject for a run directory, without its classifier and at another image size if that is asked for."""
    subject = of_run(run)
    if request.features and not subject.embeds:
        leave_out_classifier(run.model, where=subject.name)
        subject.labels = LabelSpace(0)
    if request.img_size is not None and takes_any_size(run.model):
        resize(subject, height_width(request.img_size))
    return subject


def resize(subject: Subject, size: Sequence[int]) -> None:
    """Give a model that takes images of any size others than its own, with its positions interpolated to them.

    Args:
        subject: The model, whose data config is changed.
        size: Height and width, in pixels.

    Raises:
        ModelError: It does not work with this size.
    """
    channels = subject.data_config["input_size"][0]
    check_forward(subject.model, {"img_size": list(size)}, where=subject.name)
    subject.data_config = subject.data_config | {"input_size": [channels, *size]}


def of_model(loaded: LoadedModel) -> Subject:
    """The subject for a float model."""
    cfg = loaded.pretrained_cfg
    labels = LabelSpace(loaded.num_classes, names_of(cfg, loaded.num_classes, cfg.get("label_names")))
    about = {"architecture": loaded.architecture, "model_args": loaded.model_kwargs, "source": loaded.source}
    return Subject(loaded.model, loaded.architecture, "float", loaded.data_config, labels, about, list(loaded.notes))


def of_onnx(path: Path, normalization: Normalization | None = None) -> Subject:
    """The subject for an ONNX file; a file without a description needs ``normalization``.

    Raises:
        ArtifactError: It cannot be loaded, or it does not say how images are preprocessed.
        ModelError: ``normalization`` has values that images cannot be normalized by.
    """
    from ofqctl.export import OnnxModel

    model = OnnxModel(path)
    said = model.description
    if said is not None:
        names = None if said.label_names is None else tuple(said.label_names)
        about = said.model_dump(include={"architecture", "model_args", "source", "recipe"})
        labels, notes = LabelSpace(said.num_classes, names), _about_file(path, model)
        return Subject(model, str(path), "onnx", said.data_config, labels, about, notes)
    missing = [] if all(model.size) else ["the size of its input"]
    missing += [] if model.width else ["the number of its classes"]
    if missing:
        raise ArtifactError(f"{path}: was not written by ofqctl, and does not say {' and '.join(missing)}")
    if normalization is None:
        raise ArtifactError(
            f"{path}: was not written by ofqctl, and does not say how images are normalized",
            hint="--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 are those of most ImageNet models",
        )
    mean, std = normalization
    config = {"input_size": model.size, "mean": mean, "std": std} | _COMMON_PREPARATION
    try:
        model.data_config = check_data_config(config)
    except ValueError as fault:
        raise ModelError(f"--mean, --std: {fault}") from fault
    notes = [
        f"{path}: does not say how images are preprocessed; assuming {config['interpolation']}, "
        f"crop {config['crop_pct']} ({config['crop_mode']}), and labels in the order of the data"
    ]
    about = {"architecture": path.stem, "model_args": {}, "source": str(path)}
    return Subject(model, str(path), "onnx", config, LabelSpace(model.width, None), about, notes)


def _about_file(path: Path, model: "OnnxModel") -> list[str]:
    """What a reader should know of a file that this program wrote: whether it holds its digest, and its run's age."""
    notes = []
    if not model.has_digest:
        notes.append(f"{path}: has no digest, as earlier versions wrote it, so a change of it goes unnoticed")
    if holds_run(path.parent) and model.run_sha256 is not None:
        now = read_config(path.parent).quantization_config.sha256
        if now != model.run_sha256:
            target = "" if model.description is None else f" --target {model.description.target}"
            where = f"{shlex.quote(str(path.parent))} --onnx{target} --output {shlex.quote(str(path))}"
            again = f"`ofqctl export {where} --overwrite` renews it"
            notes.append(f"{path}: is older than the run beside it, which has other weights now; {again}")
    return notes
