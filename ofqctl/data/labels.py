"""Decide which class of the data is which output of the model.

The first rule that applies is used: an explicit class map; the model's own class names; WordNet ids mapped onto the
model's ImageNet variant; the data's own order, only if the numbers of classes agree. Data that fits none of them is an
error, because wrong labels look like a bad model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ofqctl.data.class_map import ClassMap
from ofqctl.data.imagenet import are_wordnet_ids, imagenet_ids, imagenet_title
from ofqctl.data.sources.source import ClassNames
from ofqctl.data.spec import LabelSpace
from ofqctl.errors import DataError, did_you_mean


@dataclass(frozen=True)
class LabelMapping:
    """The label of every class name.

    Args:
        space: The labels, with names if the data has them.
        labels: Label by class name.
        sentence: How classes were mapped to labels.
        notes: What was assumed, one sentence each.
        renamed: Whether the model has names for its classes and the data has others.
    """

    space: LabelSpace
    labels: Mapping[str, int]
    sentence: str
    notes: tuple[str, ...] = ()
    renamed: bool = False


def map_labels(classes: ClassNames, space: LabelSpace | None, class_map: ClassMap | None, where: str) -> LabelMapping:
    """Decide the label of every class.

    Args:
        classes: The classes of the data.
        space: The labels of the model; None if it takes those of the data.
        class_map: The user's class map, or None.
        where: Name of the data, for messages.

    Raises:
        DataError: No rule applies, or the class map does not fit.
    """
    if class_map is not None:
        return _by_class_map(classes, space, class_map, where)
    if classes.names is None:
        return _streamed(classes, space, where)
    names = classes.names
    mapping = None
    if space is not None:
        mapping = _by_model_names(names, classes.noun, space) or _by_wordnet(names, classes.noun, space)
    return mapping or _by_order(names, classes, space, where)


def _by_class_map(classes: ClassNames, space: LabelSpace | None, class_map: ClassMap, where: str) -> LabelMapping:
    reading = class_map.naming(classes.names)
    labels = reading.labels
    missing = [name for name in classes.names or () if name not in labels]
    if missing:
        raise DataError(
            f"{class_map.path}: the class map lacks {_some(missing)} of the {classes.noun} in {where}",
            hint=did_you_mean(missing[0], labels) or "add a line for each",
        )
    space = space or LabelSpace(max(labels.values()) + 1)
    if reading.complete and len(labels) != space.num_classes:
        raise DataError(
            f"{class_map.path}: the class map lists {len(labels)} names in label order, "
            f"the model has {space.num_classes} classes",
            hint="list every class, or write 'name index' on every line",
        )
    outside = [name for name, label in labels.items() if label >= space.num_classes]
    if outside:
        raise DataError(
            f"{class_map.path}: the class map gives '{outside[0]}' the label {labels[outside[0]]}; "
            f"a model with {space.num_classes} classes has 0..{space.num_classes - 1}"
        )
    if space.names is None and sorted(labels.values()) == list(range(space.num_classes)):
        space = LabelSpace(space.num_classes, tuple(sorted(labels, key=labels.__getitem__)))
    count = "all" if classes.names is None else str(len(classes.names))
    sentence = f"{count} {classes.noun} mapped by {class_map.path} onto {space.num_classes} labels"
    return LabelMapping(space, labels, sentence)


def _by_model_names(names: tuple[str, ...], noun: str, space: LabelSpace) -> LabelMapping | None:
    labels = _labels_by_name(space)
    if not labels.keys() >= set(names):
        return None
    sentence = f"{len(names)} {noun} mapped by name onto the model's {space.num_classes} classes"
    return LabelMapping(space, labels, sentence)


def _by_wordnet(names: tuple[str, ...], noun: str, space: LabelSpace) -> LabelMapping | None:
    ids = imagenet_ids(space.num_classes)
    if ids is None or not set(ids) >= set(names):
        return None
    title = imagenet_title(space.num_classes)
    sentence = f"{len(names)} WordNet-id {noun} mapped onto the {len(ids)} {title} classes"
    return LabelMapping(
        LabelSpace(len(ids), space.names or ids), {name: label for label, name in enumerate(ids)}, sentence
    )


def _by_order(names: tuple[str, ...], classes: ClassNames, space: LabelSpace | None, where: str) -> LabelMapping:
    labels = {name: label for label, name in enumerate(names)}
    sentence = f"{len(names)} {classes.noun} numbered 0..{len(names) - 1}, {classes.order}"
    if space is None:
        return LabelMapping(LabelSpace(len(names), names), labels, sentence)
    if len(names) != space.num_classes or set(names) & set(space.names or ()):
        raise _mismatch(names, classes, space, where)
    known = "unknown" if space.names is None else f"not those of the data ({_some(space.names)})"
    order = f"number n of the {classes.noun}, {classes.order}"
    note = f"the model's class names are {known}: label n is assumed to be {order}"
    renamed = space.names is not None
    return LabelMapping(LabelSpace(len(names), space.names or names), labels, sentence, (note,), renamed)


def _streamed(classes: ClassNames, space: LabelSpace | None, where: str) -> LabelMapping:
    """Map the classes of a stream, which does not list them: they must be known beforehand."""
    if space is not None and _labels_by_name(space) and not classes.numbered:
        sentence = f"streamed {classes.noun} mapped by name onto the model's {space.num_classes} classes"
        return LabelMapping(space, _labels_by_name(space), sentence)
    if space is not None and classes.numbered:
        labels = {str(label): label for label in range(space.num_classes)}
        note = f"label n of {where} is assumed to be label n of the model: the stream does not list its classes"
        return LabelMapping(space, labels, f"streamed numbers taken as the model's {space.num_classes} labels", (note,))
    raise DataError(
        f"{where}: a stream does not list its classes, and nothing else says which class is which label",
        hint="--class-map FILE, or leave out --streaming",
    )


def _labels_by_name(space: LabelSpace) -> dict[str, int]:
    """Labels by the model's own class names; empty if these are unknown or ambiguous."""
    labels = {name: label for label, name in enumerate(space.names or ())}
    return labels if len(labels) == len(space.names or ()) else {}


def _mismatch(names: tuple[str, ...], classes: ClassNames, space: LabelSpace, where: str) -> DataError:
    count, model = len(names), space.num_classes
    why = f"{where}: {count} {classes.noun} do not fit a model with {model} classes"
    foreign = sorted(set(names) - set(space.names)) if space.names else []
    ids = imagenet_ids(model)
    if foreign and len(foreign) < count:
        why += f"; the model does not know {_some(foreign)}"
    elif ids is not None and are_wordnet_ids(names):
        why += f"; not all are {imagenet_title(model)} classes: {_some(sorted(set(names) - set(ids)))}"
    return DataError(
        why,
        hint=f"--class-map FILE gives every class its label, --num-classes {count} the model a new head",
    )


def _some(names: tuple[str, ...] | list[str]) -> str:
    """A few names in quotes, and how many more."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
