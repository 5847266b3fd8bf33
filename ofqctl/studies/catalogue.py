"""The studies that come with the program; read studies by name, file or folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from ofqctl.documents import checked, parse_yaml, read_text
from ofqctl.errors import StudyError, did_you_mean
from ofqctl.recipe import catalogue as recipes
from ofqctl.studies.definition import Study
from ofqctl.studies.records import Folder


@dataclass(frozen=True)
class Found:
    """A study that was read.

    Attributes:
        study: The study.
        cwd: The folder in which its commands run: that of its file.
        folder: The folder that its figures lie in, where it was read from that.
        places: Where its data was, if it was run.
    """

    study: Study
    cwd: Path
    folder: Path | None = None
    places: dict[str, str] | None = None


def folder() -> Path:
    """Folder of the shipped studies."""
    return recipes.folder() / recipes.STUDIES


def names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def read(path: Path) -> Study:
    """Read a study's file.

    Raises:
        StudyError: It is missing, unreadable or invalid; the message names the first fault.
    """
    values = parse_yaml(read_text(path, StudyError), str(path), StudyError)
    if isinstance(values, dict):
        values.setdefault("name", re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem))
    return checked(Study, values, str(path), StudyError)


def find(name: str) -> Found:
    """The study with a name, in a file, or that was run in a folder.

    Raises:
        StudyError: There is none, or it is invalid.
    """
    path = Path(name)
    if name in names():
        return Found(read(folder() / f"{name}.yaml"), folder())
    if path.is_dir() and Folder(path).is_there():
        opened = Folder(path).opened()
        return Found(opened.study, Path(opened.cwd), path, opened.places)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return Found(read(path), path.resolve().parent)
    hint = did_you_mean(name, names()) or "`ofqctl study ls` lists those that there are; a file ends in .yaml"
    raise StudyError(f"study '{name}': no shipped study of this name, no such file, and no study's folder", hint=hint)
