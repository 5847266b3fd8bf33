"""Models in memory: what they know beside their weights, and how other functions see them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL.Image import Image
from torch import Tensor, nn

from ofqctl.artifact import RunConfig
from ofqctl.data import LabelSpace, make_transform
from ofqctl.errors import ModelError
from ofqctl.evaluation import Subject, open_subject
from ofqctl.models import LoadedModel, ModelRequest, given_model
from ofqctl.recipe import Recipe

_ORIGIN = "_ofqctl"


@dataclass(frozen=True)
class _Origin:
    """What a model in memory is described by."""

    architecture: str
    num_classes: int
    model_args: dict[str, Any]
    data_config: dict[str, Any]
    source: str
    recipe: str | None


if TYPE_CHECKING:

    class Model(nn.Module):
        """A timm model, float or quantized; at run time its class is timm's own.

        Attributes:
            preprocess: Makes an input of one image: RGB image -> (3, H, W), normalized.
            label_names: Class names in label order, or None if they are not known.
            recipe: The recipe that it was quantized by; None for a float model, and for a file that does not hold it.
            notes: What was guessed or should be known, one sentence each.
        """

        preprocess: Callable[[Image], Tensor]
        label_names: tuple[str, ...] | None
        recipe: Recipe | None
        notes: tuple[str, ...]


def equipped(subject: Subject, recipe: Recipe | None) -> "Model":
    """The model of ``subject`` with the attributes of :class:`Model`."""
    model, about = cast("Model", subject.model), subject.about
    model.preprocess = make_transform(subject.data_config)
    model.label_names = subject.labels.names
    model.recipe = recipe
    model.notes = tuple(subject.notes)
    origin = _Origin(
        about["architecture"],
        subject.labels.num_classes,
        dict(about["model_args"]),
        subject.data_config,
        about["source"],
        about.get("recipe"),
    )
    setattr(model, _ORIGIN, origin)
    return model


def of_quantized(model: nn.Module, config: RunConfig) -> "Model":
    """A quantized model with the attributes of :class:`Model`."""
    labels = LabelSpace(config.num_classes, None if config.label_names is None else tuple(config.label_names))
    about: dict[str, Any] = {
        "architecture": config.architecture,
        "model_args": config.model_args,
        "source": config.source,
        "recipe": config.quantization_config.recipe.name,
    }
    subject = Subject(model, config.architecture, "float", config.data_config, labels, about)
    return equipped(subject, config.quantization_config.recipe)


def loaded_of(
    model: nn.Module, model_kwargs: Mapping[str, Any] | None, size: tuple[int, int, int] | None
) -> LoadedModel:
    """A float model in memory as one that was loaded; a copy.

    Raises:
        ModelError: It cannot be copied, computes no logits, or is quantized already.
    """
    origin: _Origin | None = getattr(model, _ORIGIN, None)
    if origin is not None and origin.recipe is not None:
        raise ModelError(f"{origin.architecture}: is quantized already; quantize starts from a float model")
    arguments = model_kwargs if model_kwargs is not None else origin.model_args if origin else {}
    loaded = given_model(model, arguments, size)
    if origin is not None:
        loaded.architecture, loaded.source, loaded.data_config = origin.architecture, origin.source, origin.data_config
    if (names := getattr(model, "label_names", None)) is not None:
        loaded.pretrained_cfg["label_names"] = list(names)
    return loaded


def subject_of(model: "str | Path | nn.Module", input_size: tuple[int, int, int] | None = None) -> Subject:
    """What can be evaluated and exported: a name, a path, or a model in memory, which is copied.

    Args:
        model: The model.
        input_size: Size of one image, (channels, H, W), for a model in memory that does not know it.

    Raises:
        OfqctlError: It cannot be opened, or computes no logits.
    """
    if not isinstance(model, nn.Module):
        return open_subject(ModelRequest(str(model)))
    origin: _Origin | None = getattr(model, _ORIGIN, None)
    if origin is None:
        loaded = given_model(model, {}, input_size)
        known = {"architecture": loaded.architecture, "model_args": {}, "source": loaded.source}
        return Subject(
            loaded.model, loaded.architecture, "float", loaded.data_config, LabelSpace(loaded.num_classes), known
        )
    labels = LabelSpace(origin.num_classes, getattr(model, "label_names", None))
    about: dict[str, Any] = {
        "architecture": origin.architecture,
        "model_args": origin.model_args,
        "source": origin.source,
        "recipe": origin.recipe,
    }
    copied = copy.deepcopy(model).cpu().eval()
    return Subject(copied, origin.architecture, "float", origin.data_config, labels, about)
