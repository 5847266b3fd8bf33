"""How much the error in each element of a unit's output counts: two estimates of the curvature of a model's loss."""

from itertools import islice

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofqctl.hooks import attached
from ofqctl.ptq.behind import Behind, outputs_of
from ofqctl.ptq.divergence import Measure, measure_of, own_loss
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Batches

_CURVED = 64  # images that the perturbation Hessian is averaged over
_TEMPERATURE = 20.0  # of its predictions, as in the authors' code


def squared_gradients(task: Task, units: list[str], images: Batches, generator: torch.Generator) -> dict[str, Tensor]:
    """The mean squared gradient over the images, as in BRECQ.

    The loss is that of an answer drawn from the float model's own predictions, see `own_loss`, so that the mean is the
    diagonal of the Fisher information.

    Returns:
        Weights by unit, each in the shape of the unit's output for one image, with a mean of 1. They are all 1 if there
        is no gradient, because the model is certain of every answer.
    """
    measure = measure_of(task.original)
    outputs: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()
        output.retain_grad()
        outputs[name] = output

    hooks = (
        task.original.get_submodule(name).register_forward_hook(lambda _m, _a, output, n=name: keep(n, output))
        for name in units
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
    return {name: _with_mean_1(total) for name, total in sums.items()}


def perturbation_hessian(
    task: Task, units: list[str], images: Batches, behind: Behind, generator: torch.Generator
) -> dict[str, Tensor]:
    """How much the gradient changes where the float model's outputs do, as in APHQ-ViT; averaged over 64 images.

    The mean over images of ``|H s|``, with the Hessian ``H`` of the divergence of the predictions and random signs
    ``s``. The paper moves all elements alike, ``s = 1``, and takes ``(J(O + d) - J(O - d)) / 2d`` of the gradient ``J``
    with ``d = 1e-6``. But what all channels of a token have in common is taken off by the next LayerNorm, so that
    ``H 1`` is 0 in every pre-norm model, and what float32 gives there is rounding. ``H s`` is computed exactly, by
    differentiating twice. Of classifiers, whose outputs are the logits, it is the diagonal of ``H`` (in the paper: the
    divergence itself is minimized).

    Returns:
        Weights as of `squared_gradients`, of the units that the model's output can be computed from.
    """
    measure = measure_of(task.original)
    sums: dict[str, Tensor] = {}
    count = min(len(images), -(-_CURVED // len(images[0])))
    for number, batch in enumerate(islice(images, count)):
        task.progress("weigh the errors", number, count)
        outputs = outputs_of(task.original, units, batch)
        found = {name: _times_signs(behind, name, outputs[name], measure, generator) for name in behind.alone}
        if behind.ends:
            with torch.no_grad():
                p = (task.original(batch) / _TEMPERATURE).softmax(dim=1)
            found |= dict.fromkeys(behind.ends, p * (1.0 - p))
        sums = {name: sums.get(name, 0.0) + sizes.abs().sum(dim=0) for name, sizes in found.items()}
    task.progress("weigh the errors", count, count)
    return {name: _with_mean_1(total) for name, total in sums.items()}


def _times_signs(behind: Behind, unit: str, y: Tensor, measure: Measure, generator: torch.Generator) -> Tensor:
    """``H s`` for each image, in the shape of ``y``: the Jacobian times the signs, the curvature, and the Jacobian."""
    signs = (torch.randint(2, y.shape, generator=generator) * 2 - 1).to(y)
    y = y.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
        z = behind.output(unit, y)
        direction = torch.zeros_like(z, requires_grad=True)
        (pulled,) = grad(z, y, direction, create_graph=True)  # linear in `direction`
        (moved,) = grad(pulled, direction, signs, retain_graph=True)
        (product,) = grad(z, y, _curvature(z.detach(), moved, measure))
    return product


def _curvature(z: Tensor, moved: Tensor, measure: Measure) -> Tensor:
    """The Hessian of the divergence from outputs ``z``, at ``z``, times ``moved``; up to a constant factor."""
    if measure == "kl":
        p = (z / _TEMPERATURE).softmax(dim=1)
        return p * (moved - (p * moved).sum(dim=1, keepdim=True))
    return moved / z.square().sum(dim=1, keepdim=True).clamp(min=1e-12)


def _with_mean_1(total: Tensor) -> Tensor:
    return total / total.mean() if total.mean() > 0 else torch.ones_like(total)
