"""What of a run directory goes to the hub: its four files, and the ONNX files in it that belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ofqctl.artifact import Run
from ofqctl.artifact.config import CONFIG
from ofqctl.artifact.results import RESULTS
from ofqctl.errors import ArtifactError
from ofqctl.export.metadata import Description, read_description, read_entry
from ofqctl.export.sealing import check_seal, read_model
from ofqctl.files import LATENTS, TRAINING_STATE, WEIGHTS, located
from ofqctl.hub.figures import measured
from ofqctl.hub.pulling import TRAINING

RECIPE = "recipe.yaml"
_FILES = (CONFIG, WEIGHTS, RESULTS, RECIPE)


@dataclass(frozen=True)
class Graph:
    """An ONNX file of the run.

    Attributes:
        description: What it says about itself.
        bytes: Its size.
        products: Number of products that were compared with torch at export.
    """

    description: Description
    bytes: int
    products: int


@dataclass(frozen=True)
class Contents:
    """What goes to the hub.

    Attributes:
        run: The run.
        files: Paths by name in the repository.
        graphs: The ONNX files among them, by name.
        notes: What was left out and should be known, one sentence each.
    """

    run: Run
    files: Mapping[str, Path]
    graphs: Mapping[str, Graph]
    notes: tuple[str, ...] = ()


def contents_of(run: Run, *, training_state: bool = False) -> Contents:
    """Collect the files of a run.

    Args:
        run: The run, as read from its directory.
        training_state: Whether the state that training goes on from is among them.

    Raises:
        ArtifactError: It is a single file, its ``config.json`` has no digest, or it has no training state.
    """
    directory = run.directory
    if directory.is_file():
        raise ArtifactError(f"{directory}: a single file, not a run directory", hint="name the run directory")
    if run.config.quantization_config.config_sha256 is None:
        raise ArtifactError(
            f"{directory}: its {CONFIG} has no digest, so nobody who downloads it can tell whether it is whole",
            hint=f"`ofqctl inspect {directory} --accept-config` adds one",
        )
    wanted = (*_FILES, *(TRAINING if training_state else ()))
    files = {name: path for name in wanted if (path := located(directory, name)).is_file()}
    if not run.results:
        files.pop(RESULTS, None)  # it cannot be used, as the notes of the run say
    if training_state and not files.keys() & {TRAINING_STATE, LATENTS}:
        raise ArtifactError(f"{directory}: has no training state ({TRAINING_STATE})", hint="leave --training-state out")
    graphs, notes = {}, []
    for path in sorted(directory.glob("*.onnx")):
        try:
            graphs[path.name] = _graph(path, run)
            files[path.name] = path
        except ArtifactError as fault:
            notes.append(f"left out: {fault}")
    return Contents(run, files, graphs, (*run.notes, *notes, *_told_paths(run)))


def _told_paths(run: Run) -> list[str]:
    """A note on paths of this machine that the files name, which the card shortens."""
    source = run.config.source
    named = [source.rpartition(" ")[2].removeprefix("local-dir:"), *measured(run).data]
    paths = [path for path in dict.fromkeys(named) if path.startswith("/")]
    return [f"{CONFIG} and {RESULTS} name paths of this machine: {', '.join(paths)}"] if paths else []


def _graph(path: Path, run: Run) -> Graph:
    """An ONNX file that was exported from this very run.

    Raises:
        ArtifactError: It is damaged, another program's, or of other weights.
    """
    check_seal(path)
    properties = {prop.key: prop.value for prop in read_model(path).metadata_props}
    description = read_description(properties, str(path))
    if description is None:
        raise ArtifactError(f"{path}: was not written by ofqctl")
    if read_entry(properties, "run", str(path)).get("sha256") != run.config.quantization_config.sha256:
        raise ArtifactError(f"{path}: was exported from other weights; `ofqctl export` renews it")
    exactness = read_entry(properties, "verification", str(path)).get("exactness") or {}
    return Graph(description, path.stat().st_size, exactness.get("products", 0))
