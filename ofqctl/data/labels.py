"""Decide which class of the data is which output of the model.

The first rule that applies is used: an explicit class map; the model's own class names; WordNet ids, or ImageNet's
words in its order, mapped onto the model's ImageNet variant; names that are numbers taken as labels; the data's own
order, only if the numbers of classes agree and the model does not name its classes. Data that fits none of them is an
error, because wrong labels look like a bad model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ofqctl.data.class_map import ClassMap
from ofqctl.data.imagenet import are_wordnet_ids, imagenet_ids, imagenet_title, spells_out
from ofqctl.data.sources.classes import ClassNames, numbers_of
from ofqctl.data.spec import LabelSpace
from ofqctl.errors import DataError, did_you_mean


@dataclass(frozen=True)
class LabelMapping:
    """The label of every class name.

    Args:
        space: The labels, with names if the data has them.
        labels: Label by class name.
        sentence: How classes were mapped to labels.
        notes: What was guessed, one sentence each.
    """

    space: LabelSpace
    labels: Mapping[str, int]
    sentence: str
    notes: tuple[str, ...] = ()


def map_labels(
    classes: ClassNames, space: LabelSpace | None, class_map: ClassMap | None, where: str, *, renaming: bool = False
) -> LabelMapping:
    """Decide the label of every class.

    Args:
        classes: The classes of the data.
        space: The labels of the model; None if it takes those of the data.
        class_map: The user's class map, or None.
        where: Name of the data, for messages.
        renaming: Whether the outputs of the model may stand for other classes than so far, because it is trained on
            them.

    Raises:
        DataError: No rule applies, the class map does not fit, or the model has a single output.
    """
    if space is not None and space.num_classes == 1:
        raise DataError(
            f"{where}: the model has one class: every image is right, whatever it computes",
            hint="a regression or a sigmoid is measured elsewhere; --num-classes N gives the model another head",
        )
    if class_map is not None:
        return _by_class_map(classes, space, class_map, where)
    if classes.names is None:
        return _streamed(classes, space, where)
    if space is None:
        return _in_order(classes.names, classes)
    mapping = _by_model_names(classes.names, classes.noun, space) or _by_wordnet(classes, space)
    return mapping or _by_number(classes.names, classes.noun, space) or _by_order(classes, space, where, renaming)


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
    own, found = numbers_of(tuple(labels)), numbers_of(names)
    if own is not None and found is not None:  # '7' and '07' are the same number
        by_number = dict(zip(own, labels.values(), strict=True))
        labels = {name: by_number[number] for name, number in zip(names, found, strict=True) if number in by_number}
    if not labels.keys() >= set(names):
        return None
    sentence = f"{len(names)} {noun} mapped by name onto the model's {space.num_classes} classes"
    return LabelMapping(space, labels, sentence)


def _by_wordnet(classes: ClassNames, space: LabelSpace) -> LabelMapping | None:
    """Map by WordNet ids, or by ImageNet's words if the data declares them in ImageNet's order."""
    names, ids = classes.names or (), imagenet_ids(space.num_classes)
    if ids is None:
        return None
    title = imagenet_title(space.num_classes)
    space = LabelSpace(len(ids), space.names or ids)
    if set(ids) >= set(names):
        sentence = f"{len(names)} WordNet-id {classes.noun} mapped onto the {len(ids)} {title} classes"
        return LabelMapping(space, {name: label for label, name in enumerate(ids)}, sentence)
    if space.names == ids and spells_out(names, ids):
        sentence = f"{len(names)} {classes.noun} with the words of the {title} classes, in their order"
        return LabelMapping(space, {name: label for label, name in enumerate(names)}, sentence)
    return None


def _by_number(names: tuple[str, ...], noun: str, space: LabelSpace) -> LabelMapping | None:
    """Take names that are numbers as labels: all of 0..n-1, or some that are plainly not counted from 0 or 1."""
    numbers, count = numbers_of(names), space.num_classes
    if numbers is None or max(numbers) >= count or (space.names is not None and not are_wordnet_ids(space.names)):
        return None
    labels = dict(zip(names, numbers, strict=True))
    if len(numbers) == count:
        ordered = tuple(sorted(names, key=labels.__getitem__))
        sentence = f"{count} {noun} numbered 0..{count - 1}, taken as the model's labels"
        return LabelMapping(LabelSpace(count, space.names or ordered), labels, sentence)
    if max(numbers) <= len(numbers):  # classes that were numbered anew
        return None
    note = f"{len(names)} {noun} bear numbers: number n is assumed to be label n of the model's {count}"
    return LabelMapping(space, labels, f"{len(names)} of {count} {noun} taken as labels by their numbers", (note,))


def _by_order(classes: ClassNames, space: LabelSpace, where: str, renaming: bool) -> LabelMapping:
    names = classes.names or ()
    if len(names) != space.num_classes or set(names) & set(space.names or ()):
        raise _mismatch(names, classes, space, where)
    mapping = _in_order(names, classes)
    if renaming and space.names is not None:
        note = (
            f"the model's class names are not those of the data ({_some(space.names)}): "
            f"label n becomes number n of the {classes.noun}, {classes.order}"
        )
        return LabelMapping(mapping.space, mapping.labels, mapping.sentence, (note,))
    if not renaming and (space.names is not None or imagenet_ids(space.num_classes) is not None):
        raise _other_names(names, classes, space, where)
    notes: tuple[str, ...] = ()
    if numbers_of(names) is not None and not renaming:
        notes = (f"the {classes.noun} are not numbered 0..{len(names) - 1}: the lowest is assumed to be label 0",)
    sentence = f"{mapping.sentence}; the model does not name its classes"
    return LabelMapping(mapping.space, mapping.labels, sentence, notes)


def _in_order(names: tuple[str, ...], classes: ClassNames) -> LabelMapping:
    """Number the classes in their own order."""
    sentence = f"{len(names)} {classes.noun} numbered 0..{len(names) - 1}, {classes.order}"
    labels = {name: label for label, name in enumerate(names)}
    return LabelMapping(LabelSpace(len(names), names), labels, sentence)


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
    if ids is not None and are_wordnet_ids(names):
        why += f"; not all are {imagenet_title(model)} classes: {_some(sorted(set(names) - set(ids)))}"
    elif foreign and len(foreign) < count:
        why += f"; the model does not know {_some(foreign)}"
    return DataError(
        why,
        hint=f"--class-map FILE gives every class its label, --num-classes {count} the model a new head",
    )


def _other_names(names: tuple[str, ...], classes: ClassNames, space: LabelSpace, where: str) -> DataError:
    """The error for data with as many classes as the model, but others by name."""
    known = space.names or imagenet_ids(space.num_classes) or ()
    whose = f"the {imagenet_title(space.num_classes)} classes" if are_wordnet_ids(known) else "those of the model"
    return DataError(
        f"{where}: its classes are not {whose}: {classes.noun} {_some(names)} in place of {_some(known)}",
        hint="--class-map FILE says which class is which label",
    )


def _some(names: tuple[str, ...] | list[str]) -> str:
    """A few names in quotes, and how many more."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
