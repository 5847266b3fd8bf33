"""One set of weights at several bit-widths: how far it is from being made for one of them."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from ofqctl.artifact import Run
from ofqctl.convert import convert
from ofqctl.errors import ModelError
from ofqctl.evaluation import Subject
from ofqctl.jobs.starting import kept_state
from ofqctl.layers import weight_sites
from ofqctl.ptq.calibration import calibrate_weights
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe import Recipe
from ofqctl.recipe.schema import FLOAT_BITS, Activations, Layer, Weights, plan_for

EDGE_BITS = 8  # of the first and the last layer of a float model


def at_widths(subject: Subject, widths: tuple[int, ...], rounding: Recipe | None) -> dict[int, nn.Module]:
    """Copies of a model with its weights rounded to other widths; all else is as it was.

    Of a quantized run, the latent weights of its training state are rounded, or what its codes stand for if it has
    none, or several for a weight; activations keep their quantizers, and so do layers that the recipe gives a width of
    their own, such as the first and the last one. At its own width it is the run itself. Of a float model, every Linear
    and convolution is rounded, the first and the last one to 8 bits, as recipes have it.

    Args:
        subject: A float model, or a run.
        widths: Bits of the weights.
        rounding: A recipe whose ``weights`` say how to round; None rounds to the least squared error in each output
            channel.

    Returns:
        A model for each width.

    Raises:
        ModelError: It is an ONNX file, or a quantized model of no run.
    """
    if subject.kind == "onnx":
        raise ModelError(f"{subject.name}: an ONNX file; --wbits rounds the weights of a run or of a float model")
    how = Weights() if rounding is None else rounding.weights
    wanted = {bits: how.model_copy(update={"bits": bits}) for bits in widths}
    if next(weight_sites(subject.model), None) is None:
        return {bits: _of_float(subject, weights) for bits, weights in wanted.items()}
    if subject.run is None:
        raise ModelError(f"{subject.name}: is quantized already; name its run, which says of how many bits it was made")
    state = kept_state(subject.run)
    return {bits: _of_run(subject.run, weights, state) for bits, weights in wanted.items()}


def _of_float(subject: Subject, weights: Weights) -> nn.Module:
    model = copy.deepcopy(subject.model)
    nothing = Activations(bits=FLOAT_BITS)
    edge = Layer(weights=weights.model_copy(update={"bits": EDGE_BITS}), activations=nothing)
    size: tuple[int, int, int] = tuple(subject.data_config["input_size"])
    plan = convert(model, Recipe(weights=weights, activations=nothing, first=edge, last=edge), size)
    calibrate_weights(model, plan)
    return model


def _of_run(run: Run, weights: Weights, state: Mapping[str, Tensor] | None) -> nn.Module:
    own = run.config.quantization_config.recipe.weights.bits
    if weights.bits == own:
        return run.model
    model = copy.deepcopy(run.model)
    sites, values = dict(weight_sites(model)), {name: site.latent() for name, site in weight_sites(run.model)}
    for site in sites.values():
        if site.fixed_codes is not None:
            site.release_codes(for_this_quantizer=False)
    if state is not None:
        model.load_state_dict(state)
    for name, site in sites.items():
        assert site.weight_quantizer is not None
        plan = site.weight_quantizer.plan
        if plan.bits == own:
            if site.weight_quantizer.own_latents:  # beside the latent weight, which alone is no weight to round
                site.install_latent(values[name].detach().clone())
            latent = site.latent().detach()
            quantizer = build_quantizer(plan_for(weights, step_shape=plan.step_shape, shape=plan.shape))
            quantizer.observe(latent)
            quantizer.finish()
            site.weight_quantizer = quantizer.to(latent.device)
    return model
