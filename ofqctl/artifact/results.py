"""``results.json``: what a run measured. No command needs it: what cannot be trusted is left out, with a note."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ofqctl.documents import checked, digest_of, parse_json, read_text
from ofqctl.errors import ArtifactError
from ofqctl.files import located

RESULTS = "results.json"
_DIGEST = "sha256"  # key of the digest in the file
_DIGESTED = "digested"  # key that says there is one, so that damage to the other key is no file of an earlier version


class _Part(BaseModel):
    """A part whose keys that some command reads have types; others are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Measured(_Part):
    top1: float | None = None


class _Evaluation(_Part):
    data: str | None = None
    of_float: _Measured | None = Field(None, alias="float")
    quantized: _Measured | None = None
    val_top1: float | None = None


class _Epoch(_Part):
    phase: str
    epoch: int
    step: int
    oscillating: float | None = None
    flips_per_step: float | None = None
    moved: float | None = None
    signs_moved: float | None = None
    magnitudes_moved: float | None = None
    val_top1: float | None = None
    seconds: float = 0.0


class _Training(_Part):
    epochs: list[_Epoch] = []


class _Results(_Part):
    evaluation: _Evaluation | None = None
    training: _Training | None = None
    seed: int | None = None
    notes: list[str] = []


def results_text(results: dict[str, Any]) -> str:
    """The text of ``results.json``, with a digest of what it says; numbers that are not finite are null."""
    values = parse_json(json.dumps(results), RESULTS) | {_DIGESTED: True}
    return json.dumps({**values, _DIGEST: digest_of(values)}, indent=1) + "\n"


def read_results(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of ``results.json``, empty if it cannot be used, and notes that say why."""
    path = located(directory, RESULTS)
    if not path.exists():
        return {}, ()
    try:
        values = parse_json(read_text(path), str(path))
        checked(_Results, values, str(path))
    except ArtifactError as error:
        return {}, (f"{error}; its figures are left out",)
    said = values.pop(_DIGEST, None)
    if said != digest_of(values) and (said is not None or _DIGESTED in values):
        return {}, (f"{path}: changed after it was written; its figures are left out",)
    values.pop(_DIGESTED, None)
    return values, ()
