"""Describe a model that somebody else built: a module in memory."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from ofqctl.errors import ModelError
from ofqctl.models.building import LOCAL_KEYS, build_architecture
from ofqctl.models.loading import LoadedModel, jsonable
from ofqctl.models.outputs import embeds


def given_model(
    module: nn.Module, model_kwargs: Mapping[str, Any], input_size: tuple[int, int, int] | None = None
) -> LoadedModel:
    """A copy of a model in memory, on the CPU, in float32 and evaluation mode, with its description.

    Args:
        module: The classifier, or a model of timm's without one; unchanged.
        model_kwargs: Arguments that it was built with, if it is one of timm.
        input_size: Size of one image, (channels, H, W); None takes what timm says of it.

    Raises:
        ModelError: It has no weights, cannot be copied, or computes no logits or embeddings; the message names the part
            that fails.
    """
    where = type(module).__name__
    if next(module.parameters(), None) is None:
        raise ModelError(f"{where}: has no weights")
    try:
        model = copy.deepcopy(module).to("cpu", torch.float32).eval()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{where}: cannot be copied: {error}") from error
    cfg = dict(getattr(module, "pretrained_cfg", None) or {})
    data_config = jsonable(resolve_model_data_config(module))  # type: ignore[no-untyped-call]
    if input_size is not None and list(input_size) != data_config["input_size"]:
        data_config["input_size"] = list(input_size)
    return LoadedModel(
        model=model,
        architecture=str(cfg.get("architecture") or where),
        num_classes=_classes(model, tuple(data_config["input_size"]), where),
        model_kwargs=jsonable(model_kwargs),
        pretrained_cfg=jsonable({key: value for key, value in cfg.items() if key not in LOCAL_KEYS}),
        data_config=data_config,
        source=f"{where} in memory",
        notes=[],
    )


def why_not_built_again(loaded: LoadedModel, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why timm does not build the same architecture from its name and arguments, or None if it does.

    Args:
        loaded: The description of the model.
        shapes: Shape of every tensor of the float model.
    """
    try:
        built = build_architecture(
            loaded.architecture,
            num_classes=loaded.num_classes,
            model_kwargs=loaded.model_kwargs,
            pretrained_cfg=loaded.pretrained_cfg or None,
        )
    except ModelError as error:
        return error.message
    other = shapes_of(built)
    differing = sorted(name for name in shapes.keys() | other.keys() if shapes.get(name) != other.get(name))
    if not differing:
        return None
    first = differing[0]
    return (
        f"timm's {loaded.architecture} with the arguments {loaded.model_kwargs} has {other.get(first, 'no')} as "
        f"{first}, this model {shapes.get(first, 'none')}"
    )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _classes(model: nn.Module, input_size: tuple[int, ...], where: str) -> int:
    """Number of its logits; 0 for a model of timm's without a classifier."""
    with torch.inference_mode(), _named_failures(model, where, input_size):
        output: Any = model(torch.zeros(2, *input_size))
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"{where}: gives {seen} for 2 images; allowed: (images, classes or features)")
    return 0 if embeds(model) else output.shape[1]


@contextmanager
def _named_failures(model: nn.Module, where: str, input_size: tuple[int, ...]) -> Iterator[None]:
    """An exception in the forward pass becomes an error that names the innermost module."""
    within: list[str] = []
    handles = []
    for name, part in model.named_modules():
        title = f"{name} ({type(part).__name__})" if name else where
        handles.append(part.register_forward_pre_hook(lambda *_, t=title: within.append(t)))
        handles.append(part.register_forward_hook(lambda *_: within.pop() and None))
    try:
        yield
    except Exception as error:
        part = within[-1] if within else where
        at = "" if part == where else f"{part}: "
        raise ModelError(
            f"{where}: {at}fails on two blank images of {'x'.join(map(str, input_size))}: {error}",
            hint="a model must take a batch of any number of images, (B, 3, H, W), as its only argument",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
