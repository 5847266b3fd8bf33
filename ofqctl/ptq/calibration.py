"""Start values for every quantizer: weights from themselves, activations from calibration images."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from ofqctl.convert import operands, weight_site
from ofqctl.errors import ModelError
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan


def calibrate(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Tensor],
    *,
    keep: Collection[str] = (),
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Set the start values of a converted model.

    Weights come first. Activations are then observed with weights quantized and activations still in float, all in
    one pass; memory does not grow with the number of images.

    Args:
        model: A model that ``plan`` was applied to; in evaluation mode afterwards.
        plan: What was quantized.
        batches: Normalized images, (B, 3, H, W) each.
        keep: Quantizers that have their values already, such as ``head.weight`` or ``head.input``.
        on_batch: Called after every batch with the number of images so far.

    Returns:
        The number of images seen.

    Raises:
        ModelError: Weights or activations that are not finite; names the first module.
    """
    model.eval()
    calibrate_weights(model, plan, keep=keep)
    every = {f"{name}.{op}": q for name in plan.modules for op, q in operands(model.get_submodule(name)).items()}
    observed = {name: quantizer for name, quantizer in every.items() if name not in keep}
    device = next(model.parameters()).device
    seen = 0
    for quantizer in observed.values():
        quantizer.observing = True
    try:
        with torch.no_grad():
            for images in batches:
                model(images.to(device))
                seen += len(images)
                if on_batch is not None:
                    on_batch(seen)
    finally:
        for quantizer in observed.values():
            quantizer.observing = False
    for name, quantizer in observed.items():
        _finish(quantizer, name)
    return seen


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
