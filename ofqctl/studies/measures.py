"""What can be measured of a row: the command that measures it, and the figures in what that prints."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ofqctl.documents import short
from ofqctl.errors import StudyError, did_you_mean
from ofqctl.results.study import FigureKind
from ofqctl.studies.definition import FigureDefinition
from ofqctl.studies.records import Record
from ofqctl.studies.steps import PYTHON, Reader, Step

Document = Mapping[str, Any]
Figures = dict[str, float]

PAIRED, ACCURACY = "paired", "accuracy"
OVER_IMAGES = ("top1", "loss")  # figures that are means over images

_KINDS = {
    "top1": FigureKind(title="top-1", unit="%", better="higher"),
    "top5": FigureKind(title="top-5", unit="%", better="higher"),
    "loss": FigureKind(title="cross-entropy", digits=3, better="lower"),
    "knn": FigureKind(title="nearest neighbours", unit="%", better="higher"),
    "recall1": FigureKind(title="recall@1", unit="%", better="higher"),
    "cosine": FigureKind(title="cosine", digits=4, better="higher"),
    "bytes": FigureKind(title="size", unit="MB", scale=1e-6, better="lower", exact=True),
    "oscillating": FigureKind(title="oscillating", unit="%", scale=100.0, better="lower"),
    "flips": FigureKind(title="codes changed a step", unit="%", digits=3, scale=100.0, better="lower"),
    "seconds": FigureKind(title="time", unit="s", digits=0, better="lower"),
    "cpu_seconds": FigureKind(title="CPU time", unit="s", digits=0, better="lower"),
    "peak_bytes": FigureKind(title="peak memory", unit="MB", digits=0, scale=1e-6, better="lower"),
}
_BY_BATCH = {
    "speed": FigureKind(title="speed, {}", unit="x", better="higher"),
    "ms": FigureKind(title="a pass of {}", unit="ms", digits=1, better="lower"),
}


FIGURES = (*_KINDS, *(f"{name}_N" for name in _BY_BATCH))  # their names, N for a number of images


def of_machine(figure: str) -> bool:
    """Whether a figure says as much of the machine as of what ran on it."""
    return figure in ("seconds", "cpu_seconds", "peak_bytes") or figure.partition("_")[0] in _BY_BATCH


@dataclass(frozen=True)
class Measure:
    """Something that can be measured.

    Attributes:
        read: Figures in a document, and in the record of the step that printed it.
        command: The command that prints the document; None for the row's own.
    """

    read: Callable[[Document, Record], Figures]
    command: str | None = None


def _accuracy(document: Document, _record: Record) -> Figures:
    likeness = document.get("likeness") or {}
    found = {name: document.get(name) for name in ("top1", "top5", "loss", "knn", "recall1")}
    return _there(found | {"cosine": likeness.get("cosine")})


def _latency(document: Document, _record: Record) -> Figures:
    ours = document["files"]["model"]["batches"]
    found = {f"ms_{size}": 1e3 * one["cpu_seconds_median"] for size, one in ours.items()}
    for ratio in list(document["ratio"].values())[:1]:
        found |= {f"speed_{size}": one["cpu_seconds_median"] for size, one in ratio["batches"].items()}
    return found


def _size(document: Document, _record: Record) -> Figures:
    size = document.get("size") or {}
    return _there({"bytes": size.get("total", document.get("bytes"))})


def _oscillation(document: Document, _record: Record) -> Figures:
    epochs = (document.get("training") or {}).get("epochs") or [{}]
    return _there({"oscillating": epochs[-1].get("oscillating"), "flips": epochs[-1].get("flips_per_step")})


def _seconds(_document: Document, record: Record) -> Figures:
    return {"seconds": record.seconds, "cpu_seconds": record.cpu_seconds}


def _memory(_document: Document, record: Record) -> Figures:
    return {"peak_bytes": record.peak_bytes}


MEASURES = {
    ACCURACY: Measure(_accuracy, "evaluate"),
    PAIRED: Measure(lambda _document, _record: {}),
    "size": Measure(_size),
    "latency": Measure(_latency, "bench infer"),
    "oscillation": Measure(_oscillation),
    "seconds": Measure(_seconds),
    "memory": Measure(_memory),
}


def measuring(reader: Reader, own: Step, name: str, options: str | None) -> Step:
    """The step that prints what a measure reads; that of the row itself, if it does.

    Args:
        reader: Reader of the row's texts.
        own: Step of the row.
        name: Name of the measure.
        options: Options of the command that measures.

    Raises:
        StudyError: Nothing is called so, or it cannot be measured of what the row makes.
    """
    if name not in MEASURES:
        hint = did_you_mean(name, MEASURES) or f"there are {', '.join(MEASURES)}"
        raise StudyError(f"measure: nothing is called '{name}'", hint=hint)
    command = MEASURES[name].command
    if command is None or own.command == command or (own.command == PYTHON and own.makes is None):
        return own
    if own.makes is None:
        raise StudyError(f"measure.{name}: `{own.command}` makes no model to measure", hint="`measure:` of that row")
    return reader.step(options or "", ahead=(*((word,) for word in command.split()), (own,)))


def own_figures(document: Document, figures: Mapping[str, FigureDefinition]) -> Figures:
    """Figures of a study's own, and those that a script prints.

    Raises:
        StudyError: What a path leads to is no number.
    """
    found: dict[str, float | None] = {**printed_figures(document)}
    for name, figure in figures.items():
        value = _at(document, figure.path)
        if value is not None and not _is_number(value):
            raise StudyError(f"figures.{name}: {figure.path} is no number, seen {short(value)}")
        found[name] = value
    return _there(found)


def printed_figures(document: Document) -> Figures:
    """Figures that a script prints; those that are null, or not finite, are left out.

    Raises:
        StudyError: They are no numbers by name.
    """
    values = document.get("figures") or {}
    if not isinstance(values, dict):
        raise StudyError(f"figures: numbers by name are expected, seen {short(values)}")
    for name, value in values.items():
        if value is not None and not _is_number(value):
            raise StudyError(f"figures.{name}: a number is expected, seen {short(value)}")
    return _there(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(document: Any, path: str) -> Any:
    """What a path leads to; None if it leads nowhere."""
    for key in path.split("."):
        if isinstance(document, list) and re.fullmatch(r"-?\d+", key):
            document = document[int(key)] if -len(document) <= int(key) < len(document) else None
        else:
            document = document.get(key) if isinstance(document, dict) else None
    return document


def _there(figures: Mapping[str, float | None]) -> Figures:
    return {name: value for name, value in figures.items() if value is not None}


def kind_of(name: str, own: Mapping[str, FigureDefinition]) -> FigureKind | None:
    """How a figure is shown; None if there is no such figure."""
    if name in own:
        return FigureKind(**own[name].model_dump(exclude={"path"}))
    if " vs " in name:
        of, _, other = name.partition(" vs ")
        if of not in OVER_IMAGES:
            return None
        unit = "points" if of == "top1" else ""
        return _KINDS[of].model_copy(
            update={"title": f"{_KINDS[of].title} against {other}", "unit": unit, "signed": True}
        )
    by_batch = re.fullmatch(r"(speed|ms)_(\d+)", name)
    if by_batch:
        images = "1 image" if by_batch[2] == "1" else f"{by_batch[2]} images"
        kind = _BY_BATCH[by_batch[1]]
        return kind.model_copy(update={"title": kind.title.format(images)})
    return _KINDS.get(name)
