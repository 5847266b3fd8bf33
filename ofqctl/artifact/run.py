"""A run directory in memory, with the only code that reads and writes it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofqctl.artifact.config import (
    CONFIG_KEY,
    FORMAT_VERSION,
    METADATA_KEY,
    READABLE,
    RunConfig,
    check_version,
    parse_config,
    read_config,
)
from ofqctl.artifact.ledger import make_ledger
from ofqctl.artifact.proof import check_written
from ofqctl.artifact.results import RESULTS, read_results, results_text
from ofqctl.artifact.tensors import from_tensors, to_tensors
from ofqctl.convert import apply_plan
from ofqctl.documents import UNSUITABLE, fitting
from ofqctl.errors import ArtifactError
from ofqctl.files import LATENTS, RUN_FILES, WEIGHTS, located, replaced_file, replaced_files
from ofqctl.models import build_architecture
from ofqctl.recipe.reading import to_yaml
from ofqctl.results.size import Ledger

_WITHOUT_DIGEST = (
    "{run}: its config.json has no digest, as earlier versions wrote it, so a change by hand goes unnoticed; "
    "`ofqctl inspect {run} --accept-config` adds one"
)


@dataclass(frozen=True)
class Download:
    """Where a run on the hub was downloaded from.

    Attributes:
        repository: ``ORG/NAME``.
        revision: The revision that the user named, or None.
        commit: The commit that it stood for.
    """

    repository: str
    revision: str | None
    commit: str

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"hf-hub:{self.repository}" + ("" if self.revision is None else f"@{self.revision}")

    @property
    def exact_name(self) -> str:
        """Its name with the commit."""
        return f"hf-hub:{self.repository}@{self.commit}"


@dataclass
class Run:
    """A quantized model, with its configuration and results.

    Attributes:
        model: The quantized model, in evaluation mode.
        config: Content of ``config.json``.
        results: Content of ``results.json``: every measured figure, and what it was measured on.
        directory: Path of the run directory, or of the self-describing file.
        notes: What a reader should know of the files, one sentence each.
        download: What was downloaded, if the directory lies in the cache of the hub's client; nothing is written there.
    """

    model: nn.Module
    config: RunConfig
    results: dict[str, Any]
    directory: Path
    notes: tuple[str, ...] = ()
    download: Download | None = None

    @property
    def name(self) -> str:
        """What the user calls it: its path, or its name on the hub."""
        return str(self.directory) if self.download is None else self.download.name

    @property
    def exact_name(self) -> str:
        """The same, with the commit of a run on the hub, for records."""
        return self.name if self.download is None else self.download.exact_name

    @property
    def place(self) -> Path:
        """What files made from it are named after by default: its directory, or ``NAME`` for ``hf-hub:ORG/NAME``."""
        return self.directory if self.download is None else Path(self.download.repository.rpartition("/")[2])

    @property
    def ledger(self) -> Ledger:
        """Sizes of the parts of the run."""
        file = self.directory if self.directory.is_file() else located(self.directory, WEIGHTS)
        size = file.stat().st_size
        return make_ledger(self.model, total=size, float_model=self.config.quantization_config.float_bytes)


def serialize(model: nn.Module) -> bytes:
    """The content of ``model.safetensors``; the same model always gives the same bytes."""
    return safetensors.torch.save(to_tensors(model), metadata={METADATA_KEY: str(FORMAT_VERSION)})


def digest(weights: bytes) -> str:
    """SHA-256 of the weights file, in hexadecimal digits."""
    return hashlib.sha256(weights).hexdigest()


def save_run(
    directory: Path,
    model: nn.Module,
    weights: bytes,
    config: RunConfig,
    results: dict[str, Any],
    latents: bytes | None = None,
) -> None:
    """Write a run directory; all its files are replaced at one moment.

    Args:
        directory: Path of the run directory; the files of an earlier run in it are replaced.
        model: The model that the written file is compared with before it is accepted.
        weights: Result of :func:`serialize`.
        config: Content of ``config.json``, with the digest of ``weights``.
        results: Content of ``results.json``.
        latents: Content of ``latents.safetensors``, see `latents_file`, or None.

    Raises:
        ArtifactError: The disk is full or cannot be written, or the written file does not match the model.
    """
    with replaced_files(directory, removed=RUN_FILES) as fresh:
        write_files(fresh, model, weights, config, results)
        if latents is not None:
            (fresh / LATENTS).write_bytes(latents)


def write_files(directory: Path, model: nn.Module, weights: bytes, config: RunConfig, results: dict[str, Any]) -> None:
    """Write the files of a run into a folder that is nobody's yet; see :func:`save_run`."""
    (directory / WEIGHTS).write_bytes(weights)
    check_written(_read_tensors(directory / WEIGHTS)[0], model, config.quantization_config.plan, WEIGHTS)
    texts = {
        "config.json": config.to_json(),
        "recipe.yaml": to_yaml(config.quantization_config.recipe),
        RESULTS: results_text(results),
    }
    for name, text in texts.items():
        (directory / name).write_bytes(text.encode())


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory, or the weights file of one."""
    return (path.is_dir() and located(path, "config.json").is_file()) or (path.is_file() and path.name == WEIGHTS)


def load_run(path: Path, download: Download | None = None) -> Run:
    """Read a run directory; the model can run right away, and each weight is decoded only once.

    Args:
        path: Path of the directory, of the ``model.safetensors`` in it, or of a file from `save_single_file`.
        download: Where it was downloaded from, if it was.

    Raises:
        ArtifactError: The run is missing, truncated, foreign, of a future version, or was changed after writing.
    """
    if path.is_file() and path.name != WEIGHTS:
        return _load_single_file(path)
    directory = path.parent if path.is_file() else path
    config = read_config(directory)
    tensors = _read_weights(located(directory, WEIGHTS), config)
    results, notes = read_results(directory)
    if config.quantization_config.config_sha256 is None:
        notes = (_WITHOUT_DIGEST.format(run=download.name if download else directory), *notes)
    if download is not None and download.revision != download.commit:
        notes = (*notes, f"{download.name} is commit {download.commit}")
    return Run(_build(config, tensors, directory / WEIGHTS), config, results, directory, notes, download)


def _build(config: RunConfig, tensors: dict[str, Tensor], where: Path) -> nn.Module:
    """Build the quantized model, in evaluation mode.

    Raises:
        ArtifactError: The architecture, the plan and the tensors do not belong together.
        ModelError: timm cannot build the architecture.
    """
    model = build_architecture(
        config.architecture,
        num_classes=config.num_classes,
        model_kwargs=config.model_args,
        pretrained_cfg=config.pretrained_cfg,
    )
    plan = config.quantization_config.plan
    with fitting(f"{where}: its plan does not fit {config.architecture}"):
        try:
            apply_plan(model, plan)
        except KeyError as error:
            missing = f"its plan names {error}, which {config.architecture} does not have"
            raise ArtifactError(f"{where}: {missing}") from error
    with fitting(f"{where}: its tensors do not fit its plan"):
        from_tensors(model, tensors, str(where))
    return model.eval()


def save_single_file(path: Path, run: Run) -> None:
    """Write a run as one file: its weights, with the content of ``config.json`` in the metadata.

    Raises:
        ArtifactError: The disk is full or cannot be written, or the written file does not match the model.
    """
    metadata = {METADATA_KEY: str(FORMAT_VERSION), CONFIG_KEY: run.config.to_json()}
    with replaced_file(path) as fresh:
        fresh.write_bytes(safetensors.torch.save(to_tensors(run.model), metadata=metadata))
        check_written(_read_tensors(fresh)[0], run.model, run.config.quantization_config.plan, path.name)


def _load_single_file(path: Path) -> Run:
    tensors, metadata, _ = _read_tensors(path)
    if CONFIG_KEY not in metadata:
        raise ArtifactError(
            f"{path}: its metadata does not describe a model, and it is not the {WEIGHTS} of a run directory",
            hint="`ofqctl export RUN --safetensors` writes self-describing files",
        )
    config = parse_config(metadata[CONFIG_KEY], str(path))
    weights = safetensors.torch.save(tensors, metadata={METADATA_KEY: metadata[METADATA_KEY]})
    _check_digest(weights, config, path)
    return Run(_build(config, tensors, path), config, {}, path)


def _read_weights(path: Path, config: RunConfig) -> dict[str, Tensor]:
    tensors, _, weights = _read_tensors(path)
    _check_digest(weights, config, path)
    return tensors


def weights_size(directory: Path, config: RunConfig) -> int:
    """Size in bytes of the weights file of a run, which is held against its digest but not read into memory.

    Raises:
        ArtifactError: It is missing, or was changed after it was written.
    """
    path = located(directory, WEIGHTS)
    try:
        with path.open("rb") as file:
            found, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found != config.quantization_config.sha256:
        raise _changed(path)
    return size


def _check_digest(weights: bytes, config: RunConfig, path: Path) -> None:
    if digest(weights) != config.quantization_config.sha256:
        raise _changed(path)


def _changed(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: changed after it was written (its SHA-256 differs from the one in its config)")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bytes]:
    """Read tensors, metadata and content of a file of this program."""
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load(weights)
    except (SafetensorError, *UNSUITABLE) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file: {error}") from error
    version = metadata.get(METADATA_KEY)
    if version is None:
        raise ArtifactError(f"{path}: not written by ofqctl: its metadata has no {METADATA_KEY}")
    check_version({str(known): known for known in READABLE}.get(version, version), str(path))
    return tensors, metadata, weights
