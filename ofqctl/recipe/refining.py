"""What ``quantize`` does beyond calibration: the steps of post-training quantization, in the recipe's order."""

from typing import Annotated, Literal

from pydantic import Field

from ofqctl.recipe.plan import Frozen

Rate = Annotated[float, Field(ge=0.0)]
EvolutionLoss = Literal["infonce", "mse", "cosine", "kl"]


class LayerNormStep(Frozen):
    """LayerNorm reparameterization (RepQ-ViT), ahead of calibration wherever it stands.

    Attributes:
        step: ``layer_norm``.
        strength: Share of the ratio between channels that is moved into the next layer, as its exponent.
        narrower: Whether weights take ranges over that have fewer bits than the activations they relieve.
    """

    step: Literal["layer_norm"]
    strength: float = Field(default=1.0, gt=0.0, le=1.0)
    narrower: bool = True


class SoftmaxStep(Frozen):
    """Steps of softmax outputs by the error of their product with the value.

    Attributes:
        step: ``softmax``.
    """

    step: Literal["softmax"]


class ERQStep(Frozen):
    """Ridge regression against activation and weight errors (ERQ), layer by layer.

    Attributes:
        step: ``erq``.
        ridge: Regularisation, as a share of the mean square of an input.
        rounds: At most so many codes of a row are rounded the other way, each time half of the columns is fixed.
        weighing: The error on an input weighs the input's mean square to minus this power; 0 weighs all alike.
    """

    step: Literal["erq"]
    ridge: float = Field(default=0.05, gt=0.0)
    rounds: int = Field(default=100, ge=0)
    weighing: float = Field(default=0.5, ge=0.0, le=1.0)


class ReconstructStep(Frozen):
    """Reconstruction of each block's output by gradient descent on its weights and steps.

    Attributes:
        step: ``reconstruct``.
        share: Of the calibration images; the others are left to a search behind it.
        steps: Of Adam for each block.
        batch_size: Images in one of them.
        drop: Share of the activations that is left in float, drawn anew in every step.
        views: Images to fit to, at least: random crops of them, half mirrored, make up for what is missing.
        weight_rate: Learning rate of weights, in quantization steps.
        step_rate: Learning rate of the steps, relative.
        float_rate: Learning rate of biases and norms.
    """

    step: Literal["reconstruct"]
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=8, ge=1)
    drop: float = Field(default=0.5, ge=0.0, lt=1.0)
    views: int = Field(default=512, ge=1)
    weight_rate: Rate = 0.02
    step_rate: Rate = 0.001
    float_rate: Rate = 1e-4


class EvolutionStep(Frozen):
    """Evolutionary search over the weight steps of all layers (Evol-Q), block by block.

    Attributes:
        step: ``evolq``.
        passes: Over all blocks.
        population: Candidates kept for each block.
        cycles: Children for each block in each pass.
        tournament: Candidates drawn, of which the fittest is the parent.
        epsilon: Largest relative change of a step from parent to child; each child draws how much of it is its own.
        granularity: What changes by one factor: all steps of a weight (``tensor``) or each by itself (``channel``).
        loss: Between the logits of the quantized and of the float model.
        temperature: With ``infonce``: of the similarities; with ``kl``: of the logits.
        held_out: Share of the calibration images that the search never sees; they select the pass that is kept.
    """

    step: Literal["evolq"]
    passes: int = Field(default=4, ge=1)
    population: int = Field(default=15, ge=1)
    cycles: int = Field(default=3, ge=1)
    tournament: int = Field(default=10, ge=1)
    epsilon: float = Field(default=0.02, gt=0.0, lt=1.0)
    granularity: Literal["tensor", "channel"] = "tensor"
    loss: EvolutionLoss = "infonce"
    temperature: float = Field(default=3.0, gt=0.0)
    held_out: float = Field(default=0.25, gt=0.0, lt=1.0)


Step = Annotated[LayerNormStep | SoftmaxStep | ERQStep | ReconstructStep | EvolutionStep, Field(discriminator="step")]
