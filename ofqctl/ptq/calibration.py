"""Start values for every quantizer: weights from themselves, activations from calibration images."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.convert import operands, weight_site
from ofqctl.errors import ModelError
from ofqctl.hooks import attached
from ofqctl.ptq.units import Batches, Reached, on_disk
from ofqctl.quantizers import Quantizer, without
from ofqctl.recipe import Plan

Told = Callable[[int], None]  # takes the share of the work that is done, as a number of images
Stored = Sequence[Tensor] | Batches  # batches that can be read again and again


def calibrate(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Tensor],
    *,
    keep: Collection[str] = (),
    on_batch: Told = lambda _images: None,
) -> int:
    """Set the start values of a converted model.

    Weights come first, from themselves. Activations follow, with weights quantized, in two stages:

    1. Quantizers that start from float activations (``uniform``; ``lsq`` with ``start: mse``) observe all images in
       one pass, in which no activation is quantized but those of ``keep``.
    2. Quantizers that start in turn (``lsq`` with ``start: mean``) do so in the order in which the model calls them:
       each from the input that it gets while all that have their start values already quantize, those of the first
       stage and of ``keep`` among them.

    Start values do not depend on how the images are split into batches, and memory does not grow with the number of
    batches. The time does: in the second stage, one batch takes one forward pass, but several take one each for
    every quantizer, up to the layer where that is called; 4 batches and 86 quantizers (a ViT-Tiny) the work of about
    32 passes over all images. So a recipe whose quantizers start in turn has all images in one batch.

    Args:
        model: A model that ``plan`` was applied to; in evaluation mode afterwards.
        plan: What was quantized.
        batches: Normalized images, (B, 3, H, W) each.
        keep: Quantizers that have their values already, such as ``head.weight`` or ``head.input``.
        on_batch: Called after every forward pass with the share of the work that is done, as a number of images.

    Returns:
        The number of images seen.

    Raises:
        ModelError: Weights or activations that are not finite; names the first module.
    """
    model.eval()
    calibrate_weights(model, plan, keep=keep)
    every = {f"{name}.{op}": q for name in plan.modules for op, q in operands(model.get_submodule(name)).items()}
    fresh = {name: quantizer for name, quantizer in every.items() if name not in keep}
    in_turn = {name: quantizer for name, quantizer in fresh.items() if quantizer.starts_in_turn}
    from_float = {name: quantizer for name, quantizer in fresh.items() if name not in in_turn}
    device = next(model.parameters()).device
    if not in_turn:
        return _start_from_float(model, from_float, batches, device, on_batch)
    with _stored(batches, device) as images:
        if from_float:
            with without(in_turn.values()):
                _start_from_float(model, from_float, images, device)
        return _start_in_turn(model, in_turn, images, device, on_batch)


def _start_from_float(
    model: nn.Module,
    quantizers: Mapping[str, Quantizer],
    batches: Iterable[Tensor],
    device: torch.device,
    on_batch: Told = lambda _images: None,
) -> int:
    """Start ``quantizers`` from one pass over ``batches``, in which they pass tensors on unchanged."""
    seen = 0
    for quantizer in quantizers.values():
        quantizer.observing = True
    try:
        with torch.no_grad():
            for images in batches:
                model(images.to(device))
                seen += len(images)
                on_batch(seen)
    finally:
        for quantizer in quantizers.values():
            quantizer.observing = False
    for name, quantizer in quantizers.items():
        _finish(quantizer, name)
    return seen


def _start_in_turn(
    model: nn.Module, quantizers: Mapping[str, Quantizer], batches: Stored, device: torch.device, on_batch: Told
) -> int:
    """Start ``quantizers`` in the order of their first calls.

    The batches go round. The first quantizer that is called without start values observes its input and ends the
    forward pass there, batch by batch, until it has seen each batch once. Then it has its start values, and this
    forward pass goes on, to the next one.
    """
    waiting = dict(quantizers)
    seen = 0

    def observer(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before_forward(_quantizer: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if name not in waiting:
                return
            waiting[name].observe(args[0])
            seen += 1
            if seen < len(batches):
                raise Reached
            _finish(waiting.pop(name), name)
            seen = 0

        return before_forward

    images = sum(len(batch) for batch in batches)
    passes = len(quantizers) * (len(batches) - 1) + 1
    hooks = (quantizer.register_forward_pre_hook(observer(name)) for name, quantizer in quantizers.items())
    with attached(hooks), torch.no_grad():
        for number in range(passes):
            with suppress(Reached):
                model(batches[number % len(batches)].to(device))
            on_batch(images * (number + 1) // passes)
    for name, never_called in waiting.items():
        _finish(never_called, name)
    return images


@contextmanager
def _stored(batches: Iterable[Tensor], device: torch.device) -> Iterator[Stored]:
    """``batches`` as they are if they can be read again and again, else on disk."""
    if isinstance(batches, Sequence | Batches):
        yield batches
        return
    with on_disk(batches, device) as stored:
        yield stored


def calibrate_weights(model: nn.Module, plan: Plan, *, keep: Collection[str] = ()) -> None:
    """Set the start values of the weight quantizers alone.

    Args:
        model: A model that ``plan`` was applied to.
        plan: What was quantized.
        keep: Quantizers that have their values already, such as ``head.weight``.

    Raises:
        ModelError: Weights that are not finite.
    """
    for name in plan.modules:
        site = weight_site(model.get_submodule(name))
        if site is None or site.weight_quantizer is None or f"{name}.weight" in keep:
            continue
        latent = site.latent().detach()
        if not bool(torch.isfinite(latent).all()):
            raise ModelError(f"{name}: {int((~torch.isfinite(latent)).sum())} of its weights are NaN or infinite")
        site.weight_quantizer.observe(latent)
        _finish(site.weight_quantizer, f"{name}.weight")


def _finish(quantizer: Quantizer, name: str) -> None:
    try:
        quantizer.finish()
    except ValueError as error:
        raise ModelError(f"{name}: calibration saw {error}") from error
