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

OnBatch = Callable[[int], None]  # takes how much of the work is done, as a number of images
Stored = Sequence[Tensor] | Batches  # batches that can be read any number of times


def calibrate(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Tensor],
    *,
    keep: Collection[str] = (),
    on_batch: OnBatch = lambda _images: None,
) -> int:
    """Set the start values of a converted model.

    Weight quantizers come first; they start from the weights alone. Activation quantizers follow, with weights
    quantized, in two rounds:

    1. Quantizers that start from float activations (``uniform``; ``lsq`` with ``start: mse``) observe all images in
       one pass, in which no activation is quantized but those of ``keep``.
    2. Quantizers that start in turn (``lsq`` with ``start: mean``) do so in the order in which the model calls them.
       Each starts from the input that it gets while all quantizers that have their start values, those of the first
       round and of ``keep`` included, already quantize.

    Start values do not depend on how the images are split into batches, and memory does not grow with the number of
    batches. The time does: in the second round, a single batch takes one forward pass, but each of several batches
    takes one for every quantizer, up to the layer that calls it. 4 batches and 86 quantizers (a ViT-Tiny) take as long
    as about 32 passes over all images. A recipe whose quantizers start in turn therefore has all images in one batch.

    Args:
        model: A model that ``plan`` was applied to; in evaluation mode afterwards.
        plan: The plan that the model was quantized by.
        batches: Normalized images, (B, 3, H, W) each.
        keep: Names of quantizers that already have their values, such as ``head.weight`` or ``head.input``.
        on_batch: Called after every forward pass with how much of the work is done, as a number of images.

    Returns:
        The number of images seen.

    Raises:
        ModelError: Weights or activations are not finite; the message names the first such module.
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
    on_batch: OnBatch = lambda _images: None,
) -> int:
    """Set start values from one pass over ``batches``, in which ``quantizers`` leave tensors unchanged."""
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
    model: nn.Module, quantizers: Mapping[str, Quantizer], batches: Stored, device: torch.device, on_batch: OnBatch
) -> int:
    """Set the start values of ``quantizers`` one after the other, in the order of their first calls.

    Forward passes take the batches in a cycle. The first quantizer without start values observes its input and ends
    the forward pass. Once it has seen every batch, its start values are set, and that forward pass goes on to the next
    quantizer.
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
    """``batches`` unchanged if they can be read any number of times, otherwise a copy of them on disk."""
    if isinstance(batches, Sequence | Batches):
        yield batches
        return
    with on_disk(batches, device) as stored:
        yield stored


def calibrate_weights(model: nn.Module, plan: Plan, *, keep: Collection[str] = ()) -> None:
    """Set the start values of the weight quantizers alone.

    Args:
        model: A model that ``plan`` was applied to.
        plan: The plan that the model was quantized by.
        keep: Names of quantizers that already have their values, such as ``head.weight``.

    Raises:
        ModelError: Weights are not finite.
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
