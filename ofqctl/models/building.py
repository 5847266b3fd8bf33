"""Build timm models, and keep the description of their input consistent with how they were built."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, is_model
from torch import nn

from ofqctl.documents import UNSUITABLE, check_lengths, short
from ofqctl.errors import ModelError
from ofqctl.models.names import unknown_architecture
from ofqctl.models.preprocessing import check_preprocessing

# Specific to one copy of the weights on one machine, so not stored with a model.
LOCAL_KEYS = frozenset(("state_dict", "file", "source"))


def build_architecture(
    architecture: str,
    *,
    num_classes: int,
    model_kwargs: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any] | None,
) -> nn.Module:
    """Build a model with random weights from the fields of a `LoadedModel`; nothing is downloaded.

    Args:
        architecture: timm's entrypoint, without tag.
        num_classes: Number of outputs of the classifier, 0 for none.
        model_kwargs: Arguments of the architecture, including ``img_size``.
        pretrained_cfg: timm's description of the weights, from which the data config is read; keys unknown to this
            release of timm are ignored. None uses the architecture's own.

    Returns:
        The model on the CPU, float32, in evaluation mode.

    Raises:
        ModelError: timm does not know the architecture, or it does not take the arguments.
    """
    if not is_model(architecture):
        raise unknown_architecture(f"model '{architecture}'", architecture)
    known = {key.name for key in fields(PretrainedCfg)} - LOCAL_KEYS
    cfg = {key: value for key, value in (pretrained_cfg or {}).items() if key in known}
    model = construct(architecture, model_kwargs, num_classes=num_classes, pretrained_cfg=cfg or None)
    follow_arguments(model, model_kwargs)
    return model


def construct(name: str, kwargs: Mapping[str, Any], **options: Any) -> nn.Module:
    """``timm.create_model`` on the CPU, in float32 and evaluation mode.

    Args:
        name: Name for timm: a model with or without tag, or with a source prefix.
        kwargs: Arguments of the architecture.
        options: Arguments of ``timm.create_model`` itself.

    Raises:
        ModelError: The architecture does not take ``kwargs``, or weights that timm loads do not fit.
    """
    try:
        check_lengths(dict(kwargs))
        model = _create(name, kwargs, options).float().eval()
    except (*UNSUITABLE, SafetensorError) as error:
        raise ModelError(
            f"model '{name}': timm cannot build it with the arguments {dict(kwargs)}: {short(error, length=400)}",
            hint="leave out or correct the named argument",
        ) from error
    try:
        check_preprocessing(weights_config(model))
    except ValueError as error:
        raise ModelError(f"model '{name}': its pretrained_cfg: {error}") from error
    return model


def weights_config(model: nn.Module) -> dict[str, Any]:
    """The description of the weights by timm: the model's own dict, not a copy."""
    cfg: Any = model.pretrained_cfg
    return cast("dict[str, Any]", cfg)


def follow_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Update the description of the weights, and so the data config, to the image size and channels.

    If mean and std have values for another number of channels, each is replaced by its average for every channel.

    Args:
        model: A timm model.
        kwargs: The arguments it was built with.
    """
    cfg = weights_config(model)
    cfg["input_size"] = _input_size(model, kwargs)
    if "img_size" in kwargs:
        cfg.pop("test_input_size", None)
    channels = cfg["input_size"][0]
    for key in ("mean", "std"):
        if len(cfg[key]) != channels:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * channels


def check_forward(model: nn.Module, kwargs: Mapping[str, Any], *, where: str) -> None:
    """Run the model on one black image, because many architectures detect a wrong image size only then.

    Args:
        model: A timm model.
        kwargs: The arguments it was built with.
        where: Start of the error message.

    Raises:
        ModelError: The model does not take images of this size.
    """
    channels, height, width = _input_size(model, kwargs)
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, height, width))
    except UNSUITABLE as error:
        raise ModelError(
            f"{where}: does not work with images of {height}x{width} pixels: {short(error, length=400)}",
            hint="choose a multiple of its patch (and window) size, or leave out `--img-size`",
        ) from error


def _create(name: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> nn.Module:
    """``timm.create_model``; an architecture without the argument ``img_size`` is resized afterwards."""
    try:
        return timm.create_model(name, **options, **kwargs)
    except TypeError as error:
        if "img_size" not in kwargs or "unexpected keyword argument 'img_size'" not in str(error):
            raise
    others = {key: value for key, value in kwargs.items() if key != "img_size"}
    model = timm.create_model(name, **options, **others)
    resize: Any = getattr(model, "set_input_size", None)
    if resize is not None:
        resize(img_size=height_width(kwargs["img_size"]))
    return model


def _input_size(model: nn.Module, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels, height and width of the images for ``model``, built with ``kwargs``."""
    channels, *size = weights_config(model)["input_size"]
    if "img_size" in kwargs:
        size = height_width(kwargs["img_size"])
    return (kwargs.get("in_chans", channels), *size)


def height_width(img_size: int | Iterable[int]) -> list[int]:
    """Height and width of images, in pixels, from one number for both or from a pair."""
    return [img_size, img_size] if isinstance(img_size, int) else list(img_size)
