"""Reconstruction by gradient descent, unit by unit (Wei et al., ICLR 2022, arXiv 2203.05740).

The weights, grid steps, biases and norms of a unit are trained to bring its output close to that of the float network,
on the inputs that the network quantized so far gives it. The best at 3 and 4 bits that needs no labels; it takes a
quarter of an hour for a ViT-Tiny on one core.

As in QDrop (Wei et al.), a random part of a unit's activations, drawn anew in every iteration, stays in float
meanwhile. What is compared is a setting, ``loss``:

* ``fisher``: as in BRECQ (Li et al., ICLR 2021, arXiv 2102.05426), ``sum g_i^2 e_i^2`` with the mean squared gradient
  ``g^2`` of the float network's own loss;
* ``aphq``: after APHQ-ViT (Wu et al., CVPR 2025, arXiv 2504.02508), ``sum h_i e_i^2`` with the mean ``h`` of ``|H s|``
  over 64 images, ``H`` being the Hessian of the divergence of the predictions at a temperature of 20. The paper has
  ``s = 1``, where ``H s`` is 0 to rounding if a LayerNorm follows; ours are random signs;
* ``mse``, ``mae``: all errors alike, squared or absolute;
* ``glfq``: as in GLF-Q, ``MSE(f^, f) / c1 + 2 MSE(y^, y) / c2``: the features ``f`` that the classifier reads if the
  unit's output ``y`` goes through the float rest of the network, and that output, each over its value on the first
  batch. Every iteration takes the rest forward and back.

All but ``glfq`` are relative to how much the targets vary from image to image, so that they are of one size for every
unit. With ``ahead: k``, the outputs of the next ``k`` units, computed in float, are compared in place of the unit's,
and the mean taken: the cross-block reconstruction of WKVQuant (``loss: mae``, ``ahead: 5``). Where what follows a unit
reads more than its output, that output alone is compared, with a note.

With ``through``, as in Bit-by-Bit, the width falls in stages, and the latent weights of each are the start of the next.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise, repeat
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ofqctl.convert import requantize
from ofqctl.errors import RecipeError
from ofqctl.hooks import attached
from ofqctl.layers import WeightSite
from ofqctl.ptq.calibration import calibrate
from ofqctl.ptq.reconstruction_loss import Kind, Losses
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Part, Piece, rebatched, walk
from ofqctl.ptq.views import views_of
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.recipe.plan import AnyQuantizerPlan
from ofqctl.registry import Frozen

_Width = Annotated[int, Field(ge=1, le=8)]
_TIMED = 3  # iterations that are timed to find how many fit into the time budget


class Reconstruct(Frozen):
    """Reconstruct each block's output by gradient descent on its weights and grid steps.

    Attributes:
        share: Share of the calibration images to use; the others are left to a search in a later stage.
        through: Widths on the way to the recipe's, from many bits to few: all quantizers of fewer bits have these
            first, and the model is reconstructed at each of them; weights go on, all else starts anew.
        iterations: Number of optimizer steps (Adam) for each block and width.
        batch_size: Number of images in one iteration.
        loss: What is minimized: the squared error of the unit's output, weighted by the mean squared gradient
            (``fisher``), by the average perturbation Hessian (``aphq``), or not at all (``mse``); its absolute error
            (``mae``); or squared errors of the output and of the features that it leads to (``glfq``).
        ahead: Number of units behind whose outputs, computed in float, are compared in place of the unit's own.
        drop: Share of the activations that is left in float, drawn anew in every iteration.
        views: Smallest number of images to fit to; random crops, half of them mirrored, are added until there are
            enough.
        weight_rate: Learning rate of weights, in grid steps.
        step_rate: Learning rate of the grid steps, relative to their size.
        float_rate: Learning rate of biases and norms.
    """

    share: float = Field(default=1.0, gt=0.0, le=1.0)
    through: tuple[_Width, ...] = ()
    iterations: int = Field(default=200, ge=1)
    batch_size: int = Field(default=8, ge=1)
    loss: Kind = "fisher"
    ahead: int = Field(default=0, ge=0)
    drop: float = Field(default=0.5, ge=0.0, lt=1.0)
    views: int = Field(default=512, ge=1)
    weight_rate: float = Field(default=0.02, ge=0.0)
    step_rate: float = Field(default=0.001, ge=0.0)
    float_rate: float = Field(default=1e-4, ge=0.0)

    @model_validator(mode="after")
    def _compares_one_thing(self) -> Self:
        if self.loss == "glfq" and self.ahead:
            raise ValueError(f"ahead: {self.ahead} units behind; glfq compares the features behind all of them, so 0")
        if any(later >= width for width, later in pairwise(self.through)):
            raise ValueError(f"through: {list(self.through)}; widths go from many bits to few")
        return self


@PTQ_STAGES.register("reconstruct", Reconstruct, traits=["latents"])
def reconstruct(task: Task, settings: Reconstruct) -> None:
    """Train the units of the model one after the other.

    Needs the memory of training one unit, which grows with the batch size but not with the number of images.
    """
    generator = torch.Generator().manual_seed(task.seed)
    fitted = max(1, round(settings.share * task.images.images))
    views = views_of(Part(task.images, stop=fitted), settings.views, generator)
    images = rebatched(views, repeat(settings.batch_size), task.images.beside("views"))
    plans = {width: _of_at_least(task.plan, width) for width in settings.through}
    done: list[int] = []
    with _constant(task.original):
        losses = Losses(task, settings.loss, settings.ahead, images, generator)
        blocks = len(losses.units) * (len(plans) + 1)
        for width, plan in [*plans.items(), (None, task.plan)]:
            if plans:
                requantize(task.model, plan)
                calibrate(task.model, plan, task.images)
            work = "reconstruct" if width is None else f"reconstruct at {width} bits"
            for piece in walk(task.model, task.original, plan, images):
                task.progress(work, piece.number, piece.count)
                if task.clock.over:
                    break
                done.append(_train(task, settings, piece, losses, generator, blocks - len(done)))
                task.progress(work, piece.number + 1, piece.count)
    images.delete()
    task.fitted = max(task.fitted, fitted)
    if len(done) < blocks or min(done) < settings.iterations:
        task.notes.append(
            f"reconstruct: the time budget allowed {sum(done) // blocks} of {settings.iterations} iterations for each "
            f"of {len(losses.units)} blocks"
        )


def _of_at_least(plan: Plan, bits: int) -> Plan:
    """The plan with quantizers of fewer bits at ``bits``.

    Raises:
        RecipeError: A quantizer does not have this width.
    """

    def widened(quantizer: AnyQuantizerPlan) -> AnyQuantizerPlan:
        wide = quantizer.model_copy(update={"bits": max(bits, quantizer.bits)})
        if (reason := wide.refused(wide.bits)) is not None:
            raise RecipeError(f"reconstruct: through: {reason}")
        return wide

    modules = {
        name: module.model_copy(
            update={
                "weight": None if module.weight is None else widened(module.weight),
                "operands": {operand: widened(quantizer) for operand, quantizer in module.operands.items()},
            }
        )
        for name, module in plan.modules.items()
    }
    return plan.model_copy(update={"modules": modules})


def _train(
    task: Task, settings: Reconstruct, piece: Piece, losses: Losses, generator: torch.Generator, left: int
) -> int:
    """Reconstruct one unit, of ``left`` to come; return the number of iterations that the time budget allowed."""
    began, share = time.monotonic(), task.clock.left
    if share is not None:
        share /= left
    loss_of = losses.of(piece)
    order: list[int] = []
    iterations, done = settings.iterations, 0
    with _trainable(piece, settings) as optimizer, _dropped(piece, settings.drop, generator):
        rates = [group["lr"] for group in optimizer.param_groups]
        while done < iterations:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * done / iterations))
            order = order or torch.randperm(len(piece.inputs), generator=generator).tolist()
            index = order.pop()
            loss = loss_of(piece.run(piece.inputs[index]), index)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == _TIMED and share is not None:
                iterations = min(iterations, max(done, int(share / (time.monotonic() - began) * done)))
    loss_of.delete()
    return done


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """Within the block, gradients flow through the model but not to its parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


@contextmanager
def _trainable(piece: Piece, settings: Reconstruct) -> Iterator[torch.optim.Adam]:
    """An optimizer of the unit's weights, grid steps, biases and norms; afterwards, grid steps are constants again."""
    groups: list[dict[str, object]] = []
    for site in _sites(piece.quantized):
        groups += [{"params": [p], "lr": settings.weight_rate * unit} for p, unit in _weights_in_steps(site)]
    quantizers = [m for m in piece.quantized.modules() if isinstance(m, Quantizer)]
    for quantizer in quantizers:
        learned = [t for t in (getattr(quantizer, n, None) for n in ("step", "before", "after")) if t is not None]
        if learned:
            groups.append({"params": learned, "lr": settings.step_rate * float(quantizer.step.detach().mean())})
    taken = {id(p) for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    rest = [p for p in piece.quantized.parameters() if id(p) not in taken]
    groups += [{"params": rest, "lr": settings.float_rate}] if rest else []
    trained: list[Tensor] = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    required_grad = [p.requires_grad for p in trained]
    for parameter in trained:
        parameter.requires_grad_()
    try:
        yield torch.optim.Adam(groups, betas=(0.9, 0.99))
    finally:
        for parameter, required in zip(trained, required_grad, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = None


def _sites(unit: nn.Module) -> list[WeightSite]:
    return [m for m in unit.modules() if isinstance(m, WeightSite) and m.weight_quantizer is not None]


def _weights_in_steps(site: WeightSite) -> Iterator[tuple[nn.Parameter, float]]:
    """The latent weights of a module, each with the change of it that amounts to one grid step."""
    encoded, latent = site.encode_weight(), site.latent().detach()
    assert encoded is not None
    part = float(encoded.step.mean()) / max(float(latent.abs().mean()), torch.finfo(latent.dtype).tiny)
    for name in site.latent_names:
        parameter = getattr(site, name)
        if isinstance(parameter, nn.Parameter):
            yield parameter, part * float(parameter.detach().abs().mean())


def _dropped(piece: Piece, drop: float, generator: torch.Generator) -> AbstractContextManager[None]:
    """Leave a random share ``drop`` of the elements of the unit's quantized activations in float."""

    def mix(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        in_float = torch.rand(output.shape, generator=generator).to(output.device) < drop
        return torch.where(in_float, args[0], output)

    weights = {id(site.weight_quantizer) for site in _sites(piece.quantized)}
    activations = [m for m in piece.quantized.modules() if isinstance(m, Quantizer) and id(m) not in weights]
    return attached(quantizer.register_forward_hook(mix) for quantizer in activations if drop)
