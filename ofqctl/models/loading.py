"""Load a model as requested: pretrained, from a checkpoint, or with random weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from timm.data.config import resolve_model_data_config
from torch import nn

from ofqctl.errors import ModelError
from ofqctl.models import sources
from ofqctl.models.building import (
    LOCAL_KEYS,
    check_forward,
    construct,
    follow_arguments,
    height_width,
    weights_config,
)
from ofqctl.models.checkpoints import check_finite, load_weights, read_checkpoint, resampled
from ofqctl.models.hub import check_reachable, downloading
from ofqctl.models.origins import Origin, find_origin, find_weights
from ofqctl.models.outputs import class_count
from ofqctl.models.transformers_layout import follow_preprocessor, in_transformers_layout

# Arguments of timm.create_model that a request has fields for, or that do not create a classifier.
_RESERVED = frozenset(
    (
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
        "features_only",
    )
)

_RESIZING = frozenset(("img_size", "patch_size", "window_size"))  # change the shapes of positions and patches


@dataclass(frozen=True)
class ModelRequest:
    """A request for a model with certain weights.

    Attributes:
        name: A timm name with or without tag, a short name (see `resolve_name`), ``hf-hub:ORG/NAME`` or
            ``local-dir:PATH``.
        checkpoint: Weight file to load in place of the pretrained weights, see `read_checkpoint`.
        pretrained: Whether to load pretrained weights if there is no checkpoint.
        num_classes: Number of classes, >= 1; None keeps that of the weights.
        img_size: Height and width of the images, in pixels, >= 1: one number for both, or a pair; None keeps the
            model's own.
        kwargs: Further arguments of the architecture, which can be written as JSON.
        features: Whether the classifier is left out, as by timm's ``num_classes=0``; the model gives embeddings then.
    """

    name: str
    checkpoint: Path | None = None
    pretrained: bool = True
    num_classes: int | None = None
    img_size: int | tuple[int, int] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    features: bool = False

    @property
    def classes(self) -> int | None:
        """Number of outputs of the classifier, 0 for none; None keeps that of the weights."""
        return 0 if self.features else self.num_classes

    @property
    def paths(self) -> list[Path]:
        """What the model is read from, if the name is a path, and the weight file."""
        return [Path(self.name.removeprefix("local-dir:")), *([self.checkpoint] if self.checkpoint else [])]


@dataclass
class LoadedModel:
    """A timm model and everything needed to build it again; every dict can be written as JSON.

    Attributes:
        model: The model on the CPU, float32, in evaluation mode.
        architecture: timm's entrypoint, without tag.
        num_classes: Number of outputs of the classifier; 0 for a model without one.
        model_kwargs: Arguments for `build_architecture`, apart from the number of classes.
        pretrained_cfg: timm's description of the weights, with the requested input size.
        data_config: Preprocessing: input_size (channels, height, width), interpolation, mean, std, crop_pct
            and crop_mode.
        source: Where the weights came from.
        notes: What was done without being requested explicitly, one sentence each.
    """

    model: nn.Module
    architecture: str
    num_classes: int
    model_kwargs: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    data_config: dict[str, Any]
    source: str
    notes: list[str]


def load_model(request: ModelRequest) -> LoadedModel:
    """Load the requested model, with its weights and its data config.

    Raises:
        ModelError: The name is unknown; the weights are unreachable, damaged, not finite or made for another
            architecture; or the architecture does not take the arguments or the image size.
    """
    _check_request(request)
    origin = find_origin(request.name)
    kwargs = _model_kwargs(origin, request)
    model, source, notes = _with_weights(origin, request, kwargs)
    follow_arguments(model, kwargs)
    data_config = jsonable(resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    return LoadedModel(
        model=model,
        architecture=origin.architecture,
        num_classes=class_count(model),
        model_kwargs=kwargs,
        pretrained_cfg=jsonable({k: v for k, v in weights_config(model).items() if k not in LOCAL_KEYS}),
        data_config=data_config,
        source=source,
        notes=[*origin.notes, *notes],
    )


def _check_request(request: ModelRequest) -> None:
    where = f"model '{request.name}'"
    sides = request.img_size if isinstance(request.img_size, tuple) else (request.img_size,)
    for option, value in (("num_classes", request.num_classes), *(("img_size", side) for side in sides)):
        if value is not None and value < 1:
            hint = "`--features` leaves the classifier out" if option == "num_classes" else "--img-size N"
            raise ModelError(f"{where}: {option} is {value}; allowed: 1 or more", hint=hint)
    if request.features and request.num_classes is not None:
        raise ModelError(
            f"{where}: --features leaves the classifier out, and --num-classes {request.num_classes} gives it another; "
            "allowed: one of them"
        )
    reserved = sorted(_RESERVED & request.kwargs.keys())
    if reserved:
        raise ModelError(
            f"{where}: '{reserved[0]}' is not an argument of the architecture",
            hint="use `--num-classes N`, `--features`, `--checkpoint FILE` or `--no-pretrained`",
        )
    among = request.kwargs.get("img_size")
    sizes = [height_width(size) for size in (request.img_size, among) if size is not None]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise ModelError(
            f"{where}: img_size is {request.img_size} and, among the model's arguments, {among}; allowed: one of them"
        )


def _model_kwargs(origin: Origin, request: ModelRequest) -> dict[str, Any]:
    """Arguments of the architecture: those of config.json, overridden by those of the request."""
    kwargs = {key: value for key, value in origin.model_args.items() if key not in _RESERVED}
    kwargs.update(request.kwargs)
    if request.img_size is not None:
        kwargs["img_size"] = request.img_size
    try:
        return jsonable({key: value for key, value in kwargs.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model '{request.name}': an argument cannot be written as JSON: {error}; "
            f"allowed: numbers, text, true, false, lists and objects of these"
        ) from error


def _with_weights(origin: Origin, request: ModelRequest, kwargs: dict[str, Any]) -> tuple[nn.Module, str, list[str]]:
    """The model, the source of its weights, and notes on what was changed to fit them."""
    wanted = request.pretrained and request.checkpoint is None
    file = request.checkpoint
    if wanted and origin.directory is not None:
        file = find_weights(origin.directory)
    if file is not None:
        source = sources.of_checkpoint(file) if request.checkpoint else origin.label
        model, notes = _from_file(origin, file, request.classes, kwargs)
    elif wanted and origin.has_weights:
        source = origin.label
        model, notes = _pretrained(origin, request.classes, kwargs)
    else:
        model = _construct(origin, kwargs, num_classes=request.classes)
        notes = [f"no pretrained weights exist for {origin.timm_name}: {sources.RANDOM}"] if wanted else []
        source = sources.RANDOM
    if source != origin.label:
        weights_config(model).pop("tag", None)  # it says what other weights were trained on
    if source != sources.RANDOM:
        check_finite(model, where=source)
    if class_count(model) == 0:
        for key in ("label_names", "label_descriptions"):
            weights_config(model).pop(key, None)  # of a classifier that was left out
    return model, source, notes


def _from_file(
    origin: Origin, file: Path, num_classes: int | None, kwargs: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    notes: list[str] = []
    state_dict = read_checkpoint(file, notes)
    model = _construct(origin, kwargs, num_classes=num_classes)
    where = f"checkpoint '{file}'"
    replaced = load_weights(model, state_dict, where=where, replace_head=num_classes is not None, notes=notes)
    if replaced is not None and class_count(model):
        notes.append(_replacement(replaced, model))
    if in_transformers_layout(state_dict):
        notes.append(f"{where}: " + follow_preprocessor(file, weights_config(model)))
    return model, notes


def _pretrained(origin: Origin, num_classes: int | None, kwargs: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """The model with the pretrained weights that timm downloads.

    They are loaded with their own classifier first, then moved to a model with another one, because with another number
    of classes timm would accept missing tensors of any kind.
    """
    where = f"model '{origin.timm_name}'"
    with downloading(where):
        if origin.hub_id is not None:
            check_reachable(origin.hub_id)
        model = _construct(origin, kwargs, pretrained=True)
    notes = []
    if _RESIZING & kwargs.keys():
        own_size = {key: value for key, value in kwargs.items() if key not in _RESIZING}
        notes = resampled(_construct(origin, own_size).state_dict(), model.state_dict())
    if num_classes in (None, class_count(model)):
        return model, notes
    resized = _construct(origin, kwargs, num_classes=num_classes)
    load_weights(resized, model.state_dict(), where=where, replace_head=True)
    return resized, [*notes, *([_replacement(class_count(model), resized)] if num_classes else [])]


def _construct(origin: Origin, kwargs: dict[str, Any], **options: Any) -> nn.Module:
    """Build the model, and try it at the image size if one was requested."""
    model = construct(origin.timm_name, kwargs, **options)
    if "img_size" in kwargs:
        check_forward(model, kwargs, where=f"model '{origin.timm_name}'")
    return model


def _replacement(classes: int, model: nn.Module) -> str:
    if classes == 0:
        return f"a random classifier with {class_count(model)} classes was added"
    return f"the classifier of {classes} classes was replaced by a random one with {class_count(model)}"


def jsonable(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` as read back from JSON: tuples become lists."""
    return cast("dict[str, Any]", json.loads(json.dumps(value)))
