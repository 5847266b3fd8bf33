"""A run directory in memory, and the only reader and writer of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofqctl.artifact.atomic import replaced_directory, replaced_file
from ofqctl.artifact.config import FORMAT_VERSION, METADATA_KEY, RunConfig, check_version, read_config
from ofqctl.artifact.ledger import Ledger, make_ledger
from ofqctl.artifact.tensors import from_tensors, to_tensors
from ofqctl.convert import apply_plan
from ofqctl.errors import ArtifactError
from ofqctl.models import build_architecture
from ofqctl.recipe.reading import to_yaml

WEIGHTS = "model.safetensors"


@dataclass
class Run:
    """A quantized model and all that is known about it.

    Attributes:
        model: The quantized model, in evaluation mode.
        config: What ``config.json`` says.
        results: What ``results.json`` says: every figure measured, with what it was measured on.
        directory: Where it lies.
    """

    model: nn.Module
    config: RunConfig
    results: dict[str, Any]
    directory: Path

    @property
    def ledger(self) -> Ledger:
        """Where the bytes are."""
        size = (self.directory / WEIGHTS).stat().st_size
        return make_ledger(self.model, total=size, float_model=self.config.quantization_config.float_bytes)


def serialize(model: nn.Module) -> bytes:
    """The bytes of ``model.safetensors``: the same model gives the same bytes."""
    return safetensors.torch.save(to_tensors(model), metadata={METADATA_KEY: str(FORMAT_VERSION)})


def digest(weights: bytes) -> str:
    """SHA-256 of the weights file, in hexadecimal digits."""
    return hashlib.sha256(weights).hexdigest()


def save_run(directory: Path, weights: bytes, config: RunConfig, results: dict[str, Any]) -> None:
    """Write a run directory, whole or not at all.

    Args:
        directory: Replaced if it exists.
        weights: From :func:`serialize`.
        config: What to say about it, with the digest of ``weights``.
        results: Figures measured.

    Raises:
        ArtifactError: The disk is full or cannot be written.
    """
    with replaced_directory(directory) as fresh:
        write_files(fresh, weights, config, results)


def write_files(directory: Path, weights: bytes, config: RunConfig, results: dict[str, Any]) -> None:
    """Write the files of a run into an existing directory, each whole or not at all.

    A reader that comes between two of them is told by the digest in ``config.json``.
    """
    texts = {
        "config.json": config.to_json(),
        "recipe.yaml": to_yaml(config.quantization_config.recipe),
        "results.json": json.dumps(results, indent=1) + "\n",
    }
    for name, content in {WEIGHTS: weights, **{name: text.encode() for name, text in texts.items()}}.items():
        with replaced_file(directory / name) as fresh:
            fresh.write_bytes(content)


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory, or the weights file of one."""
    return (path.is_dir() and (path / "config.json").is_file()) or (path.is_file() and path.name == WEIGHTS)


def load_run(path: Path) -> Run:
    """Read a run directory; the model runs at once, each weight decoded exactly once.

    Args:
        path: The directory, or the ``model.safetensors`` in it.

    Raises:
        ArtifactError: Missing, truncated, foreign, of a future version, or changed after it was written.
    """
    directory = path.parent if path.is_file() else path
    config = read_config(directory)
    tensors = _read_weights(directory / WEIGHTS, config)
    model = build_architecture(
        config.architecture,
        num_classes=config.num_classes,
        model_kwargs=config.model_args,
        pretrained_cfg=config.pretrained_cfg,
    )
    try:
        apply_plan(model, config.quantization_config.plan)
    except KeyError as error:
        raise ArtifactError(f"{directory}: its plan names {error}, not in {config.architecture}") from error
    from_tensors(model, tensors, str(directory / WEIGHTS))
    return Run(model.eval(), config, _read_results(directory), directory)


def _read_weights(path: Path, config: RunConfig) -> dict[str, Tensor]:
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get(METADATA_KEY)
        tensors = safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file: {error}") from error
    if version is None:
        raise ArtifactError(f"{path}: not written by ofqctl: its metadata has no {METADATA_KEY}")
    check_version(int(version) if version.isdigit() else version, str(path))
    if digest(weights) != config.quantization_config.sha256:
        raise ArtifactError(f"{path}: changed after it was written (its SHA-256 is not the one in config.json)")
    return tensors


def _read_results(directory: Path) -> dict[str, Any]:
    try:
        values = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}
