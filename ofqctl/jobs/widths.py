"""One set of weights at several bit-widths: how far it is from being made for one of them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ofqctl.artifact import Run
from ofqctl.convert import convert
from ofqctl.errors import ModelError
from ofqctl.evaluation import Subject
from ofqctl.files import located
from ofqctl.layers import weight_sites
from ofqctl.ptq.calibration import calibrate_weights
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe import Recipe
from ofqctl.recipe.schema import FLOAT_BITS, Activations, Layer, Weights, plan_for
from ofqctl.training import FILE, read_checkpoint_state

EDGE_BITS = 8  # of the first and the last layer of a float model


def at_widths(subject: Subject, widths: tuple[int, ...], rounding: Recipe | None) -> dict[int, nn.Module]:
    """Copies of a model with its weights rounded to other widths; all else is as it was.

    Of a quantized run, the latent weights of its training state are rounded, or what its codes stand for if it has
    none; activations keep their quantizers, and so do layers that the recipe gives a width of their own, such as the
    first and the last one. At its own width it is the run itself. Of a float model, every Linear and convolution is
    rounded, the first and the last one to 8 bits, as recipes have it.

    Args:
        subject: A float model, or a run.
        widths: Bits of the weights.
        rounding: A recipe whose ``weights`` say how to round; None rounds to the least squared error in each output
            channel.

    Returns:
        A model for each width.

    Raises:
        ModelError: It is an ONNX file, or gives embeddings.
    """
    if subject.kind == "onnx" or subject.embeds:
        what = "weights of an ONNX file cannot be rounded" if subject.kind == "onnx" else "it gives embeddings"
        raise ModelError(f"{subject.name}: --wbits measures classifiers at several widths, and {what}")
    how = Weights() if rounding is None else rounding.weights
    quantized = next(weight_sites(subject.model), None) is not None
    state = _latent_weights(subject.run) if quantized and subject.run is not None else None
    make = _of_run if quantized else _of_float
    return {bits: make(subject, how.model_copy(update={"bits": bits}), state) for bits in widths}


def _latent_weights(run: Run) -> Mapping[str, Tensor] | None:
    """The latent weights of a run, the averaged ones if these are what it holds; None if there is no state."""
    directory = Path(run.directory)
    if not directory.is_dir() or not located(directory, FILE).is_file():
        return None
    checkpoint = read_checkpoint_state(directory)
    if checkpoint.ema is None:
        return checkpoint.model
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint.ema.items()}


def _of_float(subject: Subject, weights: Weights, state: Any) -> nn.Module:  # noqa: ARG001
    model = copy.deepcopy(subject.model)
    nothing = Activations(bits=FLOAT_BITS)
    edge = Layer(weights=weights.model_copy(update={"bits": EDGE_BITS}), activations=nothing)
    size: tuple[int, int, int] = tuple(subject.data_config["input_size"])
    plan = convert(model, Recipe(weights=weights, activations=nothing, first=edge, last=edge), size)
    calibrate_weights(model, plan)
    return model


def _of_run(subject: Subject, weights: Weights, state: Mapping[str, Tensor] | None) -> nn.Module:
    assert subject.run is not None
    own = subject.run.config.quantization_config.recipe.weights.bits
    if weights.bits == own:
        return subject.model
    model = copy.deepcopy(subject.model)
    sites = [site for _, site in weight_sites(model)]
    for site in sites:
        if site.fixed_codes is not None:
            site.release_codes(for_this_quantizer=False)
    if state is not None:
        model.load_state_dict(state)
    for site in sites:
        assert site.weight_quantizer is not None
        plan = site.weight_quantizer.plan
        if plan.bits == own:
            latent = site.latent().detach()
            quantizer = build_quantizer(plan_for(weights, step_shape=plan.step_shape, shape=plan.shape))
            quantizer.observe(latent)
            quantizer.finish()
            site.weight_quantizer = quantizer.to(latent.device)
    return model
