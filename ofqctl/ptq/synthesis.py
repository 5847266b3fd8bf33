"""Images made from the float model itself, for calibration without data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from ofqctl.data import coloured, white_noise
from ofqctl.errors import ModelError
from ofqctl.hooks import attached
from ofqctl.models import embeds
from ofqctl.models.outputs import check_output
from ofqctl.progress import Progress

_RATE = 0.05  # of Adam; white noise has a variance of 1
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_MOVED = 1 / 14  # of the sides of an image, by which it is shifted at most


def fitted_images(
    model: nn.Module,
    config: Mapping[str, Any],
    sizes: Sequence[int],
    steps: int,
    seed: int,
    progress: Progress,
) -> Iterator[Tensor]:
    """Synthetic images in which a model sees classes, and whose activations have the statistics that it was trained on.

    An image is what white noise becomes with the spectrum and the colours of photographs, and the noise is what is
    fitted, so that images stay like photographs in that. The loss is the cross-entropy with a class that is drawn for
    each image, and, where there are batch normalizations, the divergence of the normal distributions of their inputs
    from those of their running statistics, a mean over channels and over layers. Images are shifted and mirrored at
    random in each step, and the noise has a mean of 0 and a variance of 1 after it.

    Args:
        model: The float model, in evaluation mode.
        config: timm's data config.
        sizes: Images in each batch.
        steps: Steps of Adam for each batch.
        seed: Seed of the noise, the classes and the shifts.
        progress: Called before every step and at the end.

    Returns:
        Normalised images on the model's device, a batch at a time.

    Raises:
        ModelError: The model has neither classes nor running statistics.

    Source: the idea is that of ZeroQ, arXiv 2001.00281, and, for models without batch normalization, of PSAQ-ViT, arXiv
    2203.02250; the images are ours.
    """
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    if embeds(model) and not norms:
        raise ModelError(
            "calibration.fitting: this model has neither classes nor running statistics to fit images to",
            hint="0 leaves synthetic images as they are; --calib-data gives real ones",
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    count = 0 if embeds(model) else _outputs(model, config)
    for number, size in enumerate(sizes):
        white = white_noise(config, size, generator).to(device).requires_grad_()
        optimizer = torch.optim.Adam([white], lr=_RATE, betas=(0.5, 0.9))
        classes = torch.randint(count, (size,), generator=generator).to(device) if count else None
        for step in range(steps):
            progress("fit synthetic images", number * steps + step, len(sizes) * steps)
            with torch.enable_grad():
                (white.grad,) = grad(_loss(model, norms, _moved(coloured(config, white), generator), classes), white)
            optimizer.step()
            with torch.no_grad():
                white -= white.mean(dim=(1, 2, 3), keepdim=True)
                white /= white.std(dim=(1, 2, 3), keepdim=True)
        yield coloured(config, white.detach())
    progress("fit synthetic images", len(sizes) * steps, len(sizes) * steps)


def _outputs(model: nn.Module, config: Mapping[str, Any]) -> int:
    """Number of outputs of the model."""
    with torch.no_grad():
        blank = torch.zeros(1, *config["input_size"], device=next(model.parameters()).device)
        return check_output(model(blank), blank).shape[1]


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images shifted by a part of their sides, around the edges, and mirrored half of the time."""
    shifts = []
    for side in images.shape[2:]:
        most = int(side * _MOVED)
        shifts.append(int(torch.randint(-most, most + 1, (1,), generator=generator)))
    moved = images.roll(shifts, dims=(2, 3))
    return moved.flip(3) if torch.rand(1, generator=generator) < 0.5 else moved


def _loss(model: nn.Module, norms: Sequence[nn.Module], images: Tensor, classes: Tensor | None) -> Tensor:
    seen: list[Tensor] = []
    hooks = (norm.register_forward_pre_hook(lambda own, args: seen.append(_divergence(own, args[0]))) for norm in norms)
    with attached(hooks):
        output = check_output(model(images), images)
    total = torch.zeros((), device=images.device)
    if seen:
        total = total + torch.stack(seen).mean()
    return total if classes is None else total + F.cross_entropy(output, classes)


def _divergence(norm: nn.Module, x: Tensor) -> Tensor:
    """Divergence of the normal distribution of each channel from the one that was seen in training, a mean."""
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    over = [dim for dim in range(x.dim()) if dim != 1]
    mean, variance = x.mean(dim=over), x.var(dim=over) + norm.eps
    wanted = norm.running_var + norm.eps
    terms = variance / wanted + (mean - norm.running_mean).square() / wanted - 1.0 - (variance / wanted).log()
    return terms.mean() / 2
