"""Open training states, runs and the OFQ authors' checkpoints behind one interface."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ofqctl.artifact import is_run, load_run, read_config
from ofqctl.convert.ofq_checkpoint import plan_of_weights, translate
from ofqctl.diagnosis.weights import AnalyzedWeight, weights_of_model, weights_of_state
from ofqctl.documents import checked
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import hub_run
from ofqctl.files import located
from ofqctl.hub.pulling import TRAINING
from ofqctl.models import read_torch_file
from ofqctl.models.hub import hub_id
from ofqctl.oscillation import TRACKER_FILE
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.training import Phase, Tracking
from ofqctl.remedies import CGA
from ofqctl.training import FILE, Checkpoint, checkpoint_of

Kind = Literal["training state", "packed codes", "OFQ checkpoint"]

_NO_TRACKER = "no tracker state: it is written by `ofqctl train` with a recipe that has `tracking`"
_NO_LATENTS = "its weights are packed codes; latent weights are in the last.pt of a training run"
_BITS_IN_NAME = re.compile(r"w([1-8])a[1-8]", re.IGNORECASE)


@dataclass
class Opened:
    """One file or run.

    Attributes:
        path: Its path, as the user named it.
        kind: Kind of the file.
        read_weights: Yields the quantized weights, one at a time.
        architecture: timm's name of the architecture, if known.
        recipe: The recipe, if known.
        tracker: State of the tracker, or None.
        epochs: Rows of the training's summary.
        checkpoint: The training state, if it is one.
        directory: The run directory that contains it, or None.
        missing: Which results it cannot give, and why.
        notes: What was assumed, one sentence each.
    """

    path: Path
    kind: Kind
    read_weights: Callable[[], Iterator[AnalyzedWeight]]
    architecture: str | None = None
    recipe: Recipe | None = None
    tracker: Mapping[str, Tensor] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    directory: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def tracking(self) -> Tracking:
        """Settings of the tracker; defaults if they are unknown."""
        training = None if self.recipe is None else self.recipe.training
        return (training and training.tracking) or Tracking()

    @property
    def annealing(self) -> tuple[str, ...]:
        """Names of the recipe's phases with CGA."""
        return tuple(phase.name for phase in self._phases if "cga" in phase.remedies)

    @property
    def boundary_range(self) -> float:
        """Boundary range of the recipe's CGA; the default if it has none."""
        found = [phase.remedies["cga"] for phase in self._phases if "cga" in phase.remedies]
        settings = found[-1] if found else CGA()
        assert isinstance(settings, CGA)
        return settings.boundary_range

    @property
    def _phases(self) -> tuple[Phase, ...]:
        training = None if self.recipe is None else self.recipe.training
        return () if training is None else training.phases


def open_source(source: str | Path, wbits: int | None = None) -> Opened:
    """Detect the kind of a file, or of a run on the hub, and read it.

    Args:
        source: Run directory, its ``model.safetensors`` or ``oscillation.safetensors``, a training state, a checkpoint
            of the OFQ authors, or ``hf-hub:ORG/NAME``.
        wbits: Bits of the weights of an OFQ authors' checkpoint, which does not contain them; None takes them from its
            name.

    Raises:
        OfqctlError: The file is missing, damaged, of another kind, or has no quantized weights.
    """
    path = Path(source)
    if hub_id(str(source)) is not None:
        found = hub_run(source, TRAINING)
        opened = open_source(found.path)
        opened.path = Path(found.name)
        return opened
    if path.is_file() and path.name == TRACKER_FILE:
        opened = open_source(path.parent)
        opened.path = path
        return opened
    if path.is_dir() and (state := located(path, FILE)).is_file():
        return _training_state(path, state)
    if is_run(path):
        return _packed(path)
    if path.is_dir() or not path.exists():
        what = f"a folder without {FILE} and config.json" if path.is_dir() else "no such file or folder"
        raise ArtifactError(f"{path}: {what}", hint="name a run directory, a last.pt, or an OFQ .pth.tar")
    content = read_torch_file(path, mapped=True)
    if isinstance(content, dict) and "position" in content:
        return _training_state(path, path, content)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return _ofq(path, content, wbits)
    raise ArtifactError(
        f"{path}: neither a training state of ofqctl nor an OFQ checkpoint",
        hint="name a run directory, its last.pt, or an OFQ .pth.tar",
    )


def _training_state(path: Path, file: Path, content: Any = None) -> Opened:
    checkpoint = checkpoint_of(read_torch_file(file, mapped=True) if content is None else content, file)
    plan = checked(Plan, checkpoint.plan, f"{file}: plan")
    _check_quantized(path, plan)
    directory = file.parent if is_run(file.parent) else None
    architecture, notes = _architecture(directory)
    opened = Opened(
        path=path,
        kind="training state",
        read_weights=lambda: weights_of_state(plan, checkpoint.model),
        architecture=architecture,
        recipe=checked(Recipe, checkpoint.recipe, f"{file}: recipe"),
        tracker=checkpoint.tracker,
        epochs=checkpoint.history,
        checkpoint=checkpoint,
        directory=directory,
        notes=notes,
    )
    if checkpoint.tracker is None:
        opened.missing["tracked"] = _NO_TRACKER
    if checkpoint.ema is not None:
        opened.notes.append(f"{path}: these are the trained weights, not the averaged ones in the run directory")
    return opened


def _architecture(directory: Path | None) -> tuple[str | None, list[str]]:
    """The architecture of a run, which is only shown, or why it is unknown."""
    if directory is None:
        return None, []
    try:
        return read_config(directory).architecture, []
    except ArtifactError as error:
        return None, [str(error)]


def _packed(path: Path) -> Opened:
    run = load_run(path)
    quantization = run.config.quantization_config
    _check_quantized(path, quantization.plan)
    return Opened(
        path=path,
        kind="packed codes",
        read_weights=lambda: weights_of_model(run.model),
        architecture=run.config.architecture,
        recipe=quantization.recipe,
        epochs=(run.results.get("training") or {}).get("epochs", []),
        directory=run.directory,
        missing={"latents": _NO_LATENTS, "tracked": _NO_TRACKER},
        notes=list(run.notes),
    )


def _ofq(path: Path, content: dict[str, Any], wbits: int | None) -> Opened:
    state = content["state_dict"]
    named = _BITS_IN_NAME.search(path.name)
    bits = wbits or (int(named[1]) if named else None)
    if bits is None:
        raise ArtifactError(f"{path}: does not contain the bits of its weights", hint="--wbits N")
    plan = plan_of_weights(state, wbits=bits)
    steps = {f"{name}.weight_quantizer.step": module.weight for name, module in plan.modules.items()}
    ours = translate(state, {name: torch.Size(weight.step_shape) for name, weight in steps.items() if weight})
    arch = content.get("arch")
    opened = Opened(
        path=path,
        kind="OFQ checkpoint",
        read_weights=lambda: weights_of_state(plan, ours),
        architecture=arch if isinstance(arch, str) else None,
        missing={"tracked": "no tracker state in the authors' files"},
    )
    if wbits is None:
        opened.notes.append(f"{path}: {bits} bits for its weights, taken from its name; --wbits N overrides this")
    return opened


def _check_quantized(path: Path, plan: Plan) -> None:
    if not any(module.weight for module in plan.modules.values()):
        raise ArtifactError(
            f"{path}: no quantized layers, so there are no codes that could oscillate",
            hint="`ofqctl train` with a recipe such as ofq/vit_w2a2 creates some",
        )
