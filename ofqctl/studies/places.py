"""Where data and models of a study lie, as commands that run in another folder see them."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from ofqctl.errors import StudyError
from ofqctl.studies.definition import Study
from ofqctl.studies.records import Opened
from ofqctl.studies.steps import LOCAL

_ELSEWHERE = ("digits", "hfds/")  # data that is no path


def places_of(study: Study, folder: Path, before: Opened | None, given: Mapping[str, str]) -> dict[str, str]:
    """Where data lies, by name: paths from the root, and names that data has elsewhere.

    What is given now counts most; then where it was in the last run, unless the study has come to say something else.

    Args:
        study: The study.
        folder: The folder of its file, from which its paths are seen.
        before: What the folder of the figures says of the last run.
        given: What the user says, as seen from the current folder.

    Raises:
        StudyError: The study has no data of a name that is given.
    """
    if unknown := set(given) - set(study.data):
        known = ", ".join(study.data) or "none"
        raise StudyError(f"--data {min(unknown)}: the study has no data of this name; it has {known}")
    places = {name: _place(place, folder) for name, place in study.data.items() if place is not None}
    if before is not None:
        said = before.study.data
        places |= {name: place for name, place in before.places.items() if (name, said.get(name)) in study.data.items()}
    return places | {name: _place(place, Path.cwd()) for name, place in given.items()}


def models_of(study: Study, before: Opened | None, given: Mapping[str, str]) -> dict[str, str]:
    """Models in place of a study's own, as words of a command line: those that are given, or that were before.

    Raises:
        StudyError: It has no model of a name that is given, or makes it.
    """
    named = [name for name, model in study.models.items() if isinstance(model, str)]
    for name in given:
        if name not in named:
            known = ", ".join(named) or "none"
            raise StudyError(
                f"--model {name}: the study has no model of this name that it does not make; it has {known}"
            )
    kept = {name: word for name, word in ({} if before is None else before.models).items() if name in named}
    return kept | {name: _word(model) for name, model in given.items()}


def _place(place: str, folder: Path) -> str:
    elsewhere = place == _ELSEWHERE[0] or place.startswith(_ELSEWHERE[1])
    return place if elsewhere else str((folder / Path(place).expanduser()).absolute())


def _word(model: str) -> str:
    """A model as one word of a command line, with a path from the root if it is one as seen from here."""
    scheme = LOCAL if model.startswith(LOCAL) else ""
    path = Path(model.removeprefix(LOCAL)).expanduser()
    return shlex.quote(f"{scheme}{path.absolute()}" if path.exists() else model)
