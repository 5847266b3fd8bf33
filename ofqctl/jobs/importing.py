"""Convert the OFQ authors' checkpoint files to run directories."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from torch import Tensor

from ofqctl.artifact import save_run, serialize
from ofqctl.convert import describe
from ofqctl.convert.ofq_checkpoint import load_ofq, recipe_for
from ofqctl.errors import ArtifactError
from ofqctl.files import output_directory
from ofqctl.jobs.writing import about_run, default_output, float_model_bytes, run_config
from ofqctl.models import ModelRequest, load_model, read_torch_file
from ofqctl.models.checkpoints import check_finite
from ofqctl.progress import Progress, silent
from ofqctl.results.importing import ImportResult

_HEADS = ("head.weight", "head.fc.weight")


@dataclass(frozen=True)
class ImportRequest:
    """A request to import a checkpoint, with what it does not contain itself.

    Attributes:
        checkpoint: The ``.pth.tar`` file.
        wbits: Bits of its weights.
        abits: Bits of its activations.
        model: timm's name of its architecture; None uses that in the file.
        num_classes: Number of classes; None uses the number of rows of the classifier in the file.
        img_size: Height and width of the images, in pixels; None uses the architecture's own.
        kwargs: Further arguments of the architecture.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        overwrite: Whether to replace an existing run.
    """

    checkpoint: Path
    wbits: int
    abits: int
    model: str | None = None
    num_classes: int | None = None
    img_size: int | tuple[int, int] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    overwrite: bool = False


def import_checkpoint(request: ImportRequest, progress: Progress = silent) -> ImportResult:
    """Read the checkpoint, load it into the quantized model strictly, and write the run directory.

    Returns:
        The run, of which ``results.json`` holds all but the path.

    Raises:
        OfqctlError: An error that the user can fix; nothing was written.
    """
    with ExitStack() as claimed:
        return _imported(request, progress, claimed)


def _imported(request: ImportRequest, progress: Progress, claimed: ExitStack) -> ImportResult:
    overwrite, sources = request.overwrite, [request.checkpoint]
    if request.output is not None:
        claimed.enter_context(output_directory(request.output, overwrite=overwrite, sources=sources))
    progress("read the checkpoint", 0, None)
    state, architecture = _read(request.checkpoint)
    recipe = recipe_for(state, wbits=request.wbits, abits=request.abits)
    loaded = load_model(_model_request(request, state, architecture))
    output = request.output or default_output(loaded.architecture, recipe)
    if request.output is None:
        claimed.enter_context(output_directory(output, overwrite=overwrite, sources=sources))
    loaded.source = f"OFQ checkpoint {request.checkpoint}"
    float_bytes = float_model_bytes(loaded.model)
    progress("convert", 0, None)
    plan = load_ofq(loaded.model, state, recipe, tuple(loaded.data_config["input_size"]))
    check_finite(loaded.model, where=str(request.checkpoint))
    plan = describe(loaded.model.eval(), plan)
    weights = serialize(loaded.model)
    config = run_config(loaded, recipe, plan, weights, float_bytes)
    about = about_run(loaded.model, config, len(weights))
    result = ImportResult(**dict(about), output=str(output), notes=tuple(loaded.notes))
    save_run(output, loaded.model, weights, config, result.stored())
    return result


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the state dict of a training checkpoint, and its architecture."""
    content = read_torch_file(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ArtifactError(f"{path}: not an OFQ checkpoint: it has no 'state_dict'")
    strange = [str(name) for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise ArtifactError(f"{path}: not an OFQ checkpoint: '{strange[0]}' in its state_dict is not a tensor")
    architecture = content.get("arch")
    return dict(clean_state_dict(state)), architecture if isinstance(architecture, str) else None


def _model_request(request: ImportRequest, state: Mapping[str, Tensor], architecture: str | None) -> ModelRequest:
    """The float model that the checkpoint's tensors belong to, with random weights."""
    name = request.model or architecture
    if name is None:
        raise ArtifactError(f"{request.checkpoint}: does not name its architecture", hint="--model NAME")
    classes = next((len(state[head]) for head in _HEADS if head in state), None)
    return ModelRequest(
        name,
        pretrained=False,
        num_classes=request.num_classes or classes,
        img_size=request.img_size,
        kwargs=request.kwargs,
    )
