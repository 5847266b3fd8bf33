"""Steps: the commands of a study with what they are made of, their words and what tells one from another."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union

from ofqctl.documents import digest_of
from ofqctl.errors import StudyError
from ofqctl.studies.content import Digests, of_code, of_file, of_recipe
from ofqctl.studies.definition import OWN_FILES, PLACEHOLDER, Made, Study

PYTHON = "python"
LOCAL = "local-dir:"  # ahead of a model that is a folder
RUN, GRAPH, PREDICTIONS = "run", OWN_FILES["output"], OWN_FILES["predictions"]
_MAKES = {"quantize": RUN, "train": RUN, "import": RUN, "export": GRAPH}
_SET_HERE = ("--output", "--overwrite", "--resume", "--json", "--quiet", "-q", "--verbose", "-v", "--save-predictions")
_IN_TURNS = ("bench infer", "bench step")  # commands whose times another process would spoil
_LONGEST = 80  # characters of a folder's name
_KEY = 12  # hexadecimal digits


@dataclass(frozen=True)
class Data:
    """Data that a word names."""

    name: str


@dataclass(frozen=True)
class Output:
    """A file or folder of a step's own that a word names."""

    name: str


_OWN_WORDS: dict[str, tuple[str | Output, ...]] = {
    "quantize": ("--output", Output(RUN), "--overwrite"),
    "train": ("--output", Output(RUN), "--resume", "auto"),
    "import": ("--output", Output(RUN), "--overwrite"),
    "export": ("--output", Output(GRAPH), "--overwrite"),
    "evaluate": ("--save-predictions", Output(PREDICTIONS)),
}  # with which a command writes into its step's folder


Piece = Union[str, Data, Output, "Step"]
Word = tuple[Piece, ...]


@dataclass(frozen=True)
class Step:
    """A command, once.

    Attributes:
        words: Its words, after ``ofqctl`` or as a whole for ``python``.
        launcher: What starts it; empty for the program itself.
        needs: Packages that it needs.
    """

    words: tuple[Word, ...]
    launcher: str = ""
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The name of the command, such as ``quantize`` or ``bench infer``."""
        first = [word[0] for word in self.words[:2] if word and isinstance(word[0], str)]
        return " ".join(first[: 2 if first[0] in ("bench", "recipe", "study") else 1])

    @property
    def makes(self) -> str | None:
        """The name of the run or file that it makes; None if it only prints."""
        if self.command == PYTHON:
            own = [piece.name for word in self.words for piece in word if isinstance(piece, Output)]
            return GRAPH if GRAPH in own else None
        return _MAKES.get(self.command)

    @property
    def all_words(self) -> tuple[Word, ...]:
        """Its words, and those that say where it writes and that it prints a document."""
        if self.command == PYTHON:
            return self.words
        return (*self.words, *((piece,) for piece in _OWN_WORDS.get(self.command, ())), ("--json",))

    @property
    def alone(self) -> bool:
        """Whether another process beside it would spoil its times."""
        return self.command in _IN_TURNS

    @property
    def parents(self) -> tuple["Step", ...]:
        """The steps whose results it reads."""
        return tuple(dict.fromkeys(piece for word in self.words for piece in word if isinstance(piece, Step)))

    @property
    def title(self) -> str:
        """What it is called in the name of its folder."""
        said = (piece.command if isinstance(piece, Step) else _name(piece) for word in self.words for piece in word)
        return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(said)).strip("-.")[:_LONGEST]

    def option(self, name: str) -> str:
        """The value of an option in its words; empty if it has none."""
        words = [word[0] if len(word) == 1 and isinstance(word[0], str) else "" for word in self.words]
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.partition("=")[0] == name:
                return word.partition("=")[2] or following
        return ""

    def closure(self) -> Iterator["Step"]:
        """The steps that it needs, in order, and itself."""
        for parent in self.parents:
            yield from parent.closure()
        yield self


def _name(piece: Piece) -> str:
    """A piece in a name; of a path its last part."""
    return piece.rpartition("/")[2] if isinstance(piece, str) else getattr(piece, "name", "")


class Reader:
    """Makes steps of the texts of a study, for one point of its matrix.

    Args:
        study: The study.
        texts: The text that stands for each axis.

    Raises:
        StudyError: A text is no command line.
    """

    def __init__(self, study: Study, texts: Mapping[str, str]) -> None:
        self._study, self._texts = study, texts

    def step(self, text: str, launcher: str = "", needs: tuple[str, ...] = (), ahead: tuple[Word, ...] = ()) -> Step:
        """The step of a text.

        Args:
            text: The text.
            launcher: What starts it.
            needs: Packages that it needs.
            ahead: Words ahead of those of the text.
        """
        made = Step((*ahead, *self._words(text)), launcher, needs)
        if not made.words or not isinstance(made.words[0][0], str):
            hint = "such as `evaluate MODEL --data {val}`, or `python FILE`"
            raise StudyError(f"command '{text}': begins with no command", hint=hint)
        for piece in (word[0] for word in made.words if made.command != PYTHON):
            if isinstance(piece, str) and piece.partition("=")[0] in _SET_HERE:
                raise StudyError(f"command '{text}': {piece} is what a study sets itself")
        every = tuple(dict.fromkeys((*needs, *(need for parent in made.parents for need in parent.needs))))
        return replace(made, needs=every)

    def _words(self, text: str) -> tuple[Word, ...]:
        filled = PLACEHOLDER.sub(self._filled, text)
        try:
            words = shlex.split(filled)
        except ValueError as error:
            raise StudyError(f"command '{text}': no command line: {error}") from error
        return tuple(tuple(self._pieces(word)) or ("",) for word in words)

    def _filled(self, found: re.Match[str]) -> str:
        """The text of an axis, or of a model that is not made; other names stay."""
        name = found[1]
        text = self._texts.get(name, self._study.models.get(name))
        return PLACEHOLDER.sub(self._filled, text) if isinstance(text, str) else found[0]

    def _pieces(self, word: str) -> Iterator[Piece]:
        at = 0
        for found in PLACEHOLDER.finditer(word):
            piece = self._piece(found[1])
            if piece is not None:
                if found.start() > at:
                    yield word[at : found.start()]
                yield piece
                at = found.end()
        if at < len(word):
            yield word[at:]

    def _piece(self, name: str) -> Piece | None:
        model = self._study.models.get(name)
        if isinstance(model, Made):
            made = self.step(model.make)
            if made.makes is None:
                raise StudyError(f"models.{name}: `{made.command}` makes no model")
            return made
        if name in self._study.data:
            return Data(name)
        return Output(OWN_FILES[name]) if name in OWN_FILES else None


@dataclass(frozen=True)
class Identity:
    """What tells a step from another.

    Attributes:
        key: Digest of everything.
        loose: Digest of everything but the contents of data and the code.
        data: Digest of the content of each of the data that it was made from, in any step.
        code: Digest of the code.
    """

    key: str
    loose: str
    data: Mapping[str, str]
    code: str


class Identities:
    """Identities of steps, for data that lies somewhere.

    Args:
        places: Where each of the data lies: a path, or a name that data has elsewhere, such as ``digits``.
        folder: The folder in which the commands run.
        digests: Digests of files.
        lenient: Whether data that is not there is data of unknown content, rather than an error.
    """

    def __init__(self, places: Mapping[str, str], folder: Path, digests: Digests, *, lenient: bool = False) -> None:
        self._places, self._folder, self._digests, self._lenient = places, folder, digests, lenient
        self._found: dict[Step, Identity] = {}

    def of(self, step: Step) -> Identity:
        """The identity of a step."""
        if step not in self._found:
            strict, loose = self._values(step, loose=False), self._values(step, loose=True)
            names = {
                piece.name for one in step.closure() for word in one.words for piece in word if isinstance(piece, Data)
            }
            self._found[step] = Identity(
                digest_of(strict)[:_KEY],
                digest_of(loose)[:_KEY],
                {name: self.of_data(name) for name in sorted(names)},
                of_code()[:_KEY],
            )
        return self._found[step]

    def of_data(self, name: str) -> str:
        """The digest of data; its name elsewhere, if it is no path."""
        place = self._places.get(name)
        if place is None or (self._lenient and Path(place).is_absolute() and not Path(place).exists()):
            return "unknown"
        return self._digests.of(Path(place))[:_KEY] if Path(place).is_absolute() else place

    def _values(self, step: Step, *, loose: bool) -> dict[str, Any]:
        script = step.option(PYTHON)
        words = [[self._piece(piece, script=script, loose=loose) for piece in word] for word in step.words]
        values: dict[str, Any] = {"words": words}
        if step.launcher:
            values["launcher"] = step.launcher
        if not loose:
            values["code"] = of_code()
        if recipe := step.option("--recipe"):
            values["recipe"] = of_recipe(recipe, self._folder)
        return values

    def _piece(self, piece: Piece, *, script: str, loose: bool) -> Any:
        if isinstance(piece, Step):
            return {"step": self._values(piece, loose=loose)}
        if isinstance(piece, Data):
            return {"data": piece.name if loose else self.of_data(piece.name)}
        if isinstance(piece, Output):
            return {"output": piece.name}
        path = self._folder / piece.removeprefix(LOCAL)
        named = piece.startswith(LOCAL) or piece == script or "/" in piece or path.suffix
        if named and not piece.startswith("-"):
            if path.is_file():
                return {"content": of_file(path)}
            if path.is_dir():
                return {"content": self._digests.of(path)}
        return piece
