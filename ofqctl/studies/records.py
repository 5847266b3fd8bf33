"""What is kept of a step: a folder with the record, the document that its command printed, its log and what it made."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from ofqctl.documents import checked, parse_json, read_text, short
from ofqctl.errors import ArtifactError, OfqctlError, StudyError
from ofqctl.files import is_empty, only_one, replaced_file
from ofqctl.registry import Frozen
from ofqctl.results.failure import Failure
from ofqctl.studies.definition import Study

DOCUMENT, LOG = "document.json", "log.txt"
_STUDY, _DIGESTS, _RECORD, _STEPS = "study.json", "digests.json", "record.json", "steps"
_POLL = 0.1  # seconds


class _Kept(Frozen):
    model_config = ConfigDict(extra="ignore")


class Machine(_Kept):
    """Where a step ran: the ``cpu``'s name, the number of its ``cores`` that there were, and names of ``gpus``."""

    cpu: str
    cores: int | None
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.cpu, *([] if self.cores is None else [f"{self.cores} cores"]), *self.gpus]
        return ", ".join(parts)


class Record(_Kept):
    """What is known of a step that ended.

    Attributes:
        key: Digest of all that it depends on.
        loose: The same, whatever the contents of data and the code.
        data: Digest of each of the data.
        code: Digest of the code.
        state: How it ended.
        failure: Why it failed, or was left out.
        seconds: Its time.
        cpu_seconds: Its time on the CPU.
        peak_bytes: Largest memory of its process.
        started: When it began, in ISO 8601, UTC.
        commit: Commit of the program, or its version.
        machine: Where it ran.
        versions: Versions of libraries.
        beside: Largest number of other steps that were running beside it in the same command.
    """

    key: str
    loose: str
    data: dict[str, str]
    code: str
    state: Literal["done", "failed", "left out"]
    failure: Failure | None = None
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    started: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    beside: int = 0


@dataclass(frozen=True)
class Kept:
    """A step's folder and its record."""

    folder: Path
    record: Record

    def document(self) -> dict[str, Any]:
        """What its command printed.

        Raises:
            ArtifactError: It is damaged.
        """
        path = self.folder / DOCUMENT
        values = parse_json(read_text(path), str(path))
        if not isinstance(values, dict):
            raise ArtifactError(f"{path}: is no object of JSON, seen {short(values)}")
        return values


class Opened(_Kept):
    """What a study's folder says of itself.

    Attributes:
        study: The study.
        places: Where its data was.
        models: Models that were put in place of the study's, as words of a command line.
        cwd: The folder in which its commands ran.
    """

    format: Literal[1] = 1
    study: Study
    places: dict[str, str]
    models: dict[str, str] = Field(default_factory=dict)
    cwd: str


class Folder:
    """The folder of a study.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_there(self) -> bool:
        """Whether a study was begun in it."""
        return (self.path / _STUDY).is_file()

    def opened(self) -> Opened:
        """What it says of itself.

        Raises:
            OfqctlError: No study was begun in it, or its description is damaged.
        """
        path = self.path / _STUDY
        if not path.is_file():
            raise StudyError(f"{self.path}: no study was run there", hint="`ofqctl study run` runs one")
        return checked(Opened, parse_json(read_text(path), str(path)), str(path))

    def check(self, study: Study) -> None:
        """Check that it is the folder of this study, or can become it.

        Raises:
            StudyError: It is that of another study, or of something else.
        """
        hint = "--output names another folder"
        if self.is_there():
            before = self.opened().study.name
            if before != study.name:
                raise StudyError(
                    f"{self.path}: is the folder of the study '{before}', not of '{study.name}'", hint=hint
                )
        elif self.path.exists() and not (self.path.is_dir() and is_empty(self.path)):
            raise StudyError(f"{self.path}: is no study's folder, and not empty", hint=hint)

    def begin(self, opened: Opened, digests: Mapping[str, tuple[str, str]]) -> None:
        """Keep the study, where its data is, and digests of files; a study of the same name goes on with other rows.

        Raises:
            StudyError: It is the folder of another study, or of something else.
        """
        self.check(opened.study)
        with alone(self.path):
            self.check(opened.study)
            self._write(_STUDY, opened.model_dump_json(indent=1) + "\n")
            self._write(_DIGESTS, json.dumps(digests, indent=1) + "\n")

    def digests(self) -> dict[str, tuple[str, str]]:
        """Digests of files that were computed before, see `Digests`."""
        path = self.path / _DIGESTS
        try:
            values = parse_json(read_text(path), str(path)) if path.is_file() else {}
            return {str(key): (str(seen), str(digest)) for key, (seen, digest) in values.items()}
        except (OfqctlError, ValueError, AttributeError, TypeError):  # it only saves time
            return {}

    def of(self, title: str, key: str) -> Path:
        """The folder of a step that has none yet."""
        return self.path / _STEPS / f"{title}-{key}"

    def steps(self) -> dict[str, Path]:
        """The folders of steps that have one, by key."""
        return {path.name.rpartition("-")[2]: path for path in sorted((self.path / _STEPS).glob("*-*"))}

    def kept(self) -> list[Kept]:
        """Every step that ended, the newest last; a damaged record counts for none."""
        found = []
        for folder in self.steps().values():
            record = read_record(folder)
            if record is not None:
                found.append(Kept(folder, record))
        return sorted(found, key=lambda kept: kept.record.started)

    def _write(self, name: str, text: str) -> None:
        with replaced_file(self.path / name) as fresh:
            fresh.write_text(text, encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is within such a block."""
    while True:
        with only_one(folder) as lock:
            if lock is not None:
                yield
                return
        time.sleep(_POLL)


def read_record(folder: Path) -> Record | None:
    """The record in a step's folder; None if the step has not ended, or its record is damaged."""
    path = folder / _RECORD
    try:
        return checked(Record, parse_json(read_text(path), str(path)), str(path)) if path.is_file() else None
    except OfqctlError:
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a step that ended."""
    with replaced_file(folder / _RECORD) as fresh:
        fresh.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
