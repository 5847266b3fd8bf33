"""Reconstruction by gradient descent, unit by unit (Wei et al., ICLR 2022, arXiv 2203.05740).

The weights, grid steps, biases and norms of a unit are trained to bring its output close to that of the float network,
on the inputs that the network quantized so far gives it. The best at 3 and 4 bits that needs no labels; it takes a
quarter of an hour for a ViT-Tiny on one core.

As in QDrop (Wei et al.), a random part of a unit's activations, drawn anew in every iteration, stays in float
meanwhile. As in BRECQ (Li et al., ICLR 2021), errors are weighted by the mean squared gradient of the float network's
own loss (Fisher).
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import repeat

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.hooks import attached
from ofqctl.layers import WeightSite
from ofqctl.ptq.divergence import measure_of, own_loss
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Batches, Part, Piece, find_units, rebatched, variance_over, walk
from ofqctl.ptq.views import views_of
from ofqctl.quantizers import Quantizer
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_TIMED = 3  # iterations that are timed to find how many fit into the time budget


class Reconstruct(Frozen):
    """Reconstruct each block's output by gradient descent on its weights and grid steps.

    Attributes:
        share: Share of the calibration images to use; the others are left to a search in a later stage.
        iterations: Number of optimizer steps (Adam) for each block.
        batch_size: Number of images in one iteration.
        drop: Share of the activations that is left in float, drawn anew in every iteration.
        views: Smallest number of images to fit to; random crops, half of them mirrored, are added until there are
            enough.
        weight_rate: Learning rate of weights, in grid steps.
        step_rate: Learning rate of the grid steps, relative to their size.
        float_rate: Learning rate of biases and norms.
    """

    share: float = Field(default=1.0, gt=0.0, le=1.0)
    iterations: int = Field(default=200, ge=1)
    batch_size: int = Field(default=8, ge=1)
    drop: float = Field(default=0.5, ge=0.0, lt=1.0)
    views: int = Field(default=512, ge=1)
    weight_rate: float = Field(default=0.02, ge=0.0)
    step_rate: float = Field(default=0.001, ge=0.0)
    float_rate: float = Field(default=1e-4, ge=0.0)


@PTQ_STAGES.register("reconstruct", Reconstruct)
def reconstruct(task: Task, settings: Reconstruct) -> None:
    """Train the units of the model one after the other.

    Needs the memory of training one unit, which grows with the batch size but not with the number of images.
    """
    generator = torch.Generator().manual_seed(task.seed)
    fitted = max(1, round(settings.share * task.images.images))
    views = views_of(Part(task.images, stop=fitted), settings.views, generator)
    images = rebatched(views, repeat(settings.batch_size), task.images.beside("views"))
    weights = importances(task, images, generator)
    done: list[int] = []
    for piece in walk(task.model, task.original, task.plan, images):
        task.progress("reconstruct", piece.number, piece.count)
        if task.clock.over:
            break
        done.append(_train(task, settings, piece, weights[piece.name], generator))
        task.progress("reconstruct", piece.number + 1, piece.count)
    images.delete()
    task.fitted = max(task.fitted, fitted)
    units = len(weights)
    if len(done) < units or min(done) < settings.iterations:
        task.notes.append(
            f"reconstruct: the time budget allowed {sum(done) // units} of {settings.iterations} iterations for each "
            f"of {units} blocks"
        )


def importances(task: Task, images: Batches, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights for the error in each element of each unit's output: the mean squared gradient over the images.

    The loss is that of an answer drawn from the float model's own predictions, see `own_loss`, so that the mean is the
    diagonal of the Fisher information.

    Returns:
        Weights by unit, each in the shape of the unit's output for one image, with a mean of 1. They are all 1 if there
        is no gradient, because the model is certain of every answer.
    """
    measure = measure_of(task.original)
    names = [unit.name for unit, _ in find_units(task.original, task.plan, images[0][:2])]
    outputs: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()
        output.retain_grad()
        outputs[name] = output

    hooks = (
        task.original.get_submodule(name).register_forward_hook(lambda _m, _a, output, n=name: keep(n, output))
        for name in names
    )
    with attached(hooks):
        for number, batch in enumerate(images):
            task.progress("weigh the errors", number, len(images))
            own_loss(task.original(batch), measure, generator).backward()  # type: ignore[no-untyped-call]
            for name, output in outputs.items():
                assert output.grad is not None
                sums[name] = sums.get(name, 0.0) + output.grad.square().sum(dim=0)
            task.original.zero_grad()
    task.progress("weigh the errors", len(images), len(images))
    return {name: total / total.mean() if total.mean() > 0 else torch.ones_like(total) for name, total in sums.items()}


def _train(task: Task, settings: Reconstruct, piece: Piece, weights: Tensor, generator: torch.Generator) -> int:
    """Reconstruct one unit; return the number of iterations that the time budget allowed."""
    began, share = time.monotonic(), task.clock.left
    if share is not None:
        share /= piece.count - piece.number
    norm = float((variance_over(piece.targets) * weights).mean()) or 1.0  # the variance over one image is 0
    order: list[int] = []
    iterations, done = settings.iterations, 0
    with _trainable(piece, settings) as optimizer, _dropped(piece, settings.drop, generator):
        rates = [group["lr"] for group in optimizer.param_groups]
        while done < iterations:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * done / iterations))
            order = order or torch.randperm(len(piece.inputs), generator=generator).tolist()
            index = order.pop()
            error = (piece.run(piece.inputs[index]) - piece.targets[index]).square()
            loss = (error * weights).mean() / norm
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == _TIMED and share is not None:
                iterations = min(iterations, max(done, int(share / (time.monotonic() - began) * done)))
    return done


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
