"""What the output of a model is: classes, or embeddings of a model without a classifier, with its patch tokens."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.documents import UNSUITABLE, short
from ofqctl.errors import ModelError
from ofqctl.hooks import shadowed
from ofqctl.results.document import Gives


def class_count(model: nn.Module) -> int:
    """Number of outputs of the classifier, 0 for a model without one."""
    return int(getattr(model, "num_classes", 0))


def gives(num_classes: int) -> Gives:
    """What a model with so many classes gives; one without a classifier gives embeddings."""
    return "classes" if num_classes else "embeddings"


def embeds(model: nn.Module) -> bool:
    """Whether a timm model has no classifier, so that its output is an embedding: the one place that is asked."""
    return getattr(model, "num_classes", None) == 0


def leave_out_classifier(model: nn.Module, *, where: str) -> None:
    """Take the classifier off a timm model, float or quantized; all else stays as it is.

    Raises:
        ModelError: Its head is built anew without a classifier, so that weights would be lost.
    """
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    head: Any = model
    try:
        head.reset_classifier(0)
        after = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    except UNSUITABLE as error:
        raise ModelError(f"{where}: its classifier cannot be left out: {short(error)}") from error
    if any(before.get(name) != place for name, place in after.items()):
        raise ModelError(f"{where}: its classifier cannot be left out: its head is built anew without one")


def with_tokens(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass of a model without a classifier that also gives its dense features.

    Args:
        model: A timm model without a classifier, float or quantized.
        images: Preprocessed images, (B, 3, H, W).

    Returns:
        The pooled embeddings, (B, D), and the patch tokens, (B, N, C): the last features ahead of pooling, without
        class and register tokens, row by row where they are a map.

    Raises:
        ModelError: The model does not compute its features apart from pooling.
    """
    parts: Any = model
    if not hasattr(parts, "forward_features") or not hasattr(parts, "forward_head"):
        raise ModelError(f"{type(model).__name__}: does not give its tokens apart from its embedding", hint=_WITHOUT)
    features = parts.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ModelError(f"{type(model).__name__}: its features are no single tensor of tokens or a map", hint=_WITHOUT)
    embedding: Tensor = parts.forward_head(features)
    return embedding, _patches(features, parts)


def every_output(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """All that users take from a model: its output and, without a classifier, its patch tokens if it has some.

    Args:
        model: A timm model.
        images: Preprocessed images, (B, 3, H, W).
    """
    if embeds(model):
        with suppress(ModelError):
            return with_tokens(model, images)
    output: Tensor = model(images)
    return (output,)


@contextmanager
def giving_tokens(model: nn.Module) -> Iterator[None]:
    """Within the block, a model without a classifier gives what `with_tokens` returns."""
    with shadowed(model, "forward", partial(with_tokens, model)):
        yield


_WITHOUT = "leave out --tokens"


def _patches(features: Tensor, model: Any) -> Tensor:
    """Features, (B, tokens, C), (B, H, W, C) or (B, C, H, W), as patch tokens, (B, N, C)."""
    if features.ndim == 3:
        return features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    if features.shape[1] != features.shape[-1]:  # where they differ, the number of channels says which they are
        channels_last = features.shape[-1] == model.num_features
    return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)


def check_output(output: Any, images: Tensor, *, where: str = "the model") -> Tensor:
    """The output of a model on ``images`` in float32, if it can be used.

    Args:
        output: What the model gave.
        images: What it was given, (B, 3, H, W).
        where: Start of an error message.

    Raises:
        ModelError: It is not (B, classes or features), or some of it is not finite.
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
        seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"{where}: gives {seen} for {len(images)} images; allowed: (images, classes or features)",
            hint="a model without pooling gets it with --model-kwargs global_pool=avg",
        )
    if bad := int((~output.isfinite()).any(dim=-1).sum()):
        raise ModelError(
            f"{where}: {bad} of {len(images)} images have outputs that are NaN or infinite",
            hint="its weights are damaged, or its values too large for their type",
        )
    return output.to(torch.float32)
