"""Build timm models, and keep what they say of their input in line with how they were built."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, is_model
from torch import nn

from ofqctl.errors import ModelError
from ofqctl.models.names import unknown_architecture

# True of one copy of the weights on one machine, so kept out of what is stored with a model.
LOCAL_KEYS = frozenset(("state_dict", "file", "source"))
# What model constructors are known to raise on arguments that they cannot use.
_BUILD_FAULTS = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


def build_architecture(
    architecture: str,
    *,
    num_classes: int,
    model_kwargs: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any] | None,
) -> nn.Module:
    """A model with random weights from what a `LoadedModel` says of itself; nothing is downloaded.

    Args:
        architecture: timm's entrypoint, without tag.
        num_classes: Outputs of the classifier, 0 for none.
        model_kwargs: Arguments of the architecture, ``img_size`` among them.
        pretrained_cfg: timm's description of the weights, which the data config is read from; keys that this
            release of timm does not know are passed over. None takes the architecture's own.

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
        name: What timm takes: a model with or without tag, or one with a source prefix.
        kwargs: Arguments of the architecture.
        options: Arguments of ``timm.create_model`` itself.

    Raises:
        ModelError: The architecture does not take ``kwargs``, or weights that timm loads do not fit.
    """
    try:
        return _create(name, kwargs, options).float().eval()
    except (*_BUILD_FAULTS, SafetensorError) as error:
        raise ModelError(
            f"model '{name}': timm cannot build it with the arguments {dict(kwargs)}: {_short(error)}",
            hint="leave out or correct the argument that is named",
        ) from error


def class_count(model: nn.Module) -> int:
    """Outputs of the classifier, 0 for a model without one."""
    return int(getattr(model, "num_classes", 0))


def weights_config(model: nn.Module) -> dict[str, Any]:
    """What timm says of the weights; the model's own dict, so that changes to it stay."""
    cfg: Any = model.pretrained_cfg
    return cast("dict[str, Any]", cfg)


def follow_arguments(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Let the description of the weights, and so the data config, follow the image size and channels.

    With another number of channels than mean and std have values, each becomes its average, once a channel.

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
    """Send one black image through the model: many architectures notice a wrong image size only then.

    Args:
        model: A timm model.
        kwargs: The arguments it was built with.
        where: What the message starts with.

    Raises:
        ModelError: The model does not take images of this size.
    """
    channels, height, width = _input_size(model, kwargs)
    try:
        with torch.inference_mode():
            model(torch.zeros(1, channels, height, width))
    except _BUILD_FAULTS as error:
        raise ModelError(
            f"{where}: does not work with images of {height}x{width} pixels: {_short(error)}",
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
        resize(img_size=_height_width(kwargs["img_size"]))
    return model


def _input_size(model: nn.Module, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels, height and width of the images for ``model``, built with ``kwargs``."""
    channels, *size = weights_config(model)["input_size"]
    if "img_size" in kwargs:
        size = _height_width(kwargs["img_size"])
    return (kwargs.get("in_chans", channels), *size)


def _height_width(img_size: int | Iterable[int]) -> list[int]:
    return [img_size, img_size] if isinstance(img_size, int) else list(img_size)


def _short(error: BaseException) -> str:
    """The message of ``error`` on one line of at most 400 characters, or the name of its type."""
    return " ".join(str(error).split())[:400] or type(error).__name__
