"""How far the output of a quantized model is from the float model's, by what the output is.

Classes are compared as probabilities, embeddings as vectors. Stages and measurements of post-training quantization that
need a distance of outputs take it from here.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.models import embeds

Measure = Literal["kl", "relative_error"]
MEASURES = {"kl": "divergence of the predictions, nats", "relative_error": "squared error of the embeddings, relative"}


def measure_of(model: nn.Module) -> Measure:
    """What outputs of ``model`` are compared by: the divergence of its predictions, or the error of its embeddings."""
    return "relative_error" if embeds(model) else "kl"


def divergence(ours: Tensor, theirs: Tensor, measure: Measure, temperature: float = 1.0) -> Tensor:
    """Mean distance of outputs, a scalar that is never negative.

    Args:
        ours: Outputs of the quantized model, (B, classes or features).
        theirs: Outputs of the float model, of the same shape.
        measure: ``kl``: Kullback-Leibler divergence of the predictions from the float ones, in nats.
            ``relative_error``: squared error of the embeddings, relative to the squared length of the float ones.
        temperature: What logits are divided by for ``kl``, which is then multiplied by its square.
    """
    ours, theirs = ours.float(), theirs.float()
    if measure == "kl":
        softer, wanted = ((logits / temperature).log_softmax(1) for logits in (ours, theirs))
        kl = F.kl_div(softer, wanted, log_target=True, reduction="batchmean")
        return kl.clamp(min=0.0) * temperature**2
    return ((ours - theirs).square().sum(1) / theirs.square().sum(1).clamp(min=1e-12)).mean()


def own_loss(output: Tensor, measure: Measure, generator: torch.Generator) -> Tensor:
    """The loss of a float model on an answer that is drawn from its own predictions, summed over the images.

    The mean of its squared gradient is the diagonal of the Fisher information.

    Args:
        output: Outputs of the float model, (B, classes or features).
        measure: ``kl``: cross-entropy with a drawn class. ``relative_error``: half the squared error to an embedding
            drawn from a normal distribution around the model's own, whose gradient is the drawn deviation.
        generator: Random generator, on the CPU.
    """
    if measure == "kl":
        drawn = torch.multinomial(output.detach().softmax(dim=1).cpu(), 1, generator=generator)[:, 0]
        return F.cross_entropy(output, drawn.to(output.device), reduction="sum")
    deviation = torch.randn(output.shape, generator=generator).to(output)
    return (output * deviation).sum()
