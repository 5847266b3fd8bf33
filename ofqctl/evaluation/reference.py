"""The float model that a quantized one is compared with."""

from pathlib import Path

from ofqctl.artifact import is_run
from ofqctl.convert import takes_any_size
from ofqctl.errors import ModelError, OfqctlError
from ofqctl.evaluation.subject import Subject, of_model, open_subject, resize
from ofqctl.models import ModelRequest, load_model, sources
from ofqctl.models.checkpoints import SUFFIXES


def float_model_of(subject: Subject, against: str | Subject | None) -> tuple[Subject | None, list[str]]:
    """Open the float model that ``subject`` is compared with.

    Args:
        subject: A run or an ONNX file, or a float model, which is compared only if ``against`` is given.
        against: A model by name, a run directory, an ONNX file or float weights of the same architecture; None takes
            the weights that the run was made from, if they can be read. Or what was opened already.

    Returns:
        The model, or None, and notes, such as why there is none.

    Raises:
        OfqctlError: ``against`` cannot be opened, or its embeddings or images are not those of ``subject``.
    """
    if against is not None:
        reference = against if isinstance(against, Subject) else _named(subject, against)
        _check_alike(subject, reference, reference.name)
        return reference, [f"--against {reference.name}: {note}" for note in reference.notes]
    if subject.kind == "float":
        return None, []
    source = str(subject.about["source"])
    try:
        reference = _source(subject, source)
        _check_alike(subject, reference, source)
    except OfqctlError as error:
        return None, [f"{_not_compared(source)}: {error.message}; --against MODEL names it"]
    except LookupError as error:
        return None, [f"{_not_compared(source)}: {error.args[0]}; --against MODEL names it"]
    return reference, []


def _named(subject: Subject, against: str) -> Subject:
    path = Path(against)
    if path.suffix in SUFFIXES and path.is_file() and not is_run(path):
        return of_model(load_model(_request(subject, checkpoint=path)))
    if ":" not in against and (path.exists() or len(path.parts) > 1):
        return open_subject(ModelRequest(against, features=not path.exists()))
    return of_model(load_model(ModelRequest(against, features=True, kwargs=_sizes(subject))))


def _source(subject: Subject, source: str) -> Subject:
    """The float model that a run or file was made from.

    Raises:
        LookupError: It is nowhere.
    """
    if (path := sources.run_in(source)) is not None:
        if ":" not in path and not Path(path).exists():
            raise LookupError("it is no longer there")
        return open_subject(ModelRequest(path, features=True))
    if (file := sources.checkpoint_in(source)) is not None:
        return of_model(load_model(_request(subject, checkpoint=Path(file))))
    if source == sources.RANDOM:
        raise LookupError("its weights were random")
    named = source if ":" in source else f"hf-hub:{source}"  # as timm names the weights it knows
    return of_model(load_model(ModelRequest(named, features=True, kwargs=subject.about["model_args"])))


def _request(subject: Subject, checkpoint: Path) -> ModelRequest:
    about = subject.about
    return ModelRequest(about["architecture"], checkpoint=checkpoint, features=True, kwargs=about["model_args"])


def _sizes(subject: Subject) -> dict[str, object]:
    """The arguments of ``subject`` that say which images it takes."""
    return {name: value for name, value in subject.about["model_args"].items() if name in ("img_size", "in_chans")}


def _not_compared(source: str) -> str:
    return f"not compared with the float model ({source})"


def _check_alike(subject: Subject, reference: Subject, name: str) -> None:
    """Check that the two can be compared, on images of the size of ``subject``.

    Raises:
        ModelError: The reference has a classifier, or takes other images.
    """
    if not reference.embeds:
        raise ModelError(f"{name}: has a classifier, {subject.name} gives embeddings", hint="--against MODEL")
    theirs, ours = (list(each.data_config["input_size"]) for each in (reference, subject))
    if theirs != ours and takes_any_size(reference.model):
        resize(reference, ours[1:])
        theirs = list(reference.data_config["input_size"])
    if theirs != ours:
        raise ModelError(f"{name}: takes images of {theirs}, {subject.name} of {ours}", hint="--against MODEL")
