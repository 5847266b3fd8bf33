"""The result of ``ofqctl train``."""

from typing import Literal

from pydantic import ConfigDict

from ofqctl.results.data import SkippedImage
from ofqctl.results.document import IfAny, Number, Part
from ofqctl.results.embeddings import EmbeddingFigures, PairedEmbeddings
from ofqctl.results.run import RunResult


class TrainedEpoch(Part):
    """Figures of an epoch; remedies, and terms of the objective, add their own.

    Attributes:
        phase: Name of the recipe's phase.
        epoch: Number of the epoch in the phase, from 0.
        step: Number of optimizer steps in the training so far.
        loss: Mean loss.
        train_top1: Share of the training images whose label was predicted first, in percent.
        val_top1: The same of the validation images.
        val_loss: Mean cross-entropy on the validation images, in nats.
        val_cosine: Mean cosine of the validation images' embeddings with the teacher's.
        val_knn: Accuracy of a vote of each one's nearest among them, in percent.
        val_recall1: Share of those whose nearest is of their class, in percent.
        oscillating: Share of the weights that oscillate, 0 to 1.
        flips_per_step: Share of the codes that change in an optimizer step, 0 to 1, mean of the last 30.
        moved: Share of the codes that are not those at the first optimizer step, 0 to 1.
        signs_moved: Share of the weights whose quantized value has another sign than then, 0 to 1; 0 is one.
        magnitudes_moved: Share of the weights whose quantized value has another magnitude in grid steps, 0 to 1.
        seconds: Time spent in optimizer steps.
    """

    model_config = ConfigDict(extra="allow")
    phase: str
    epoch: int
    step: int
    loss: Number = None
    train_top1: IfAny[Number] = None
    val_top1: IfAny[Number] = None
    val_loss: IfAny[Number] = None
    val_cosine: IfAny[Number] = None
    val_knn: IfAny[Number] = None
    val_recall1: IfAny[Number] = None
    oscillating: IfAny[Number] = None
    flips_per_step: IfAny[Number] = None
    moved: IfAny[Number] = None
    signs_moved: IfAny[Number] = None
    magnitudes_moved: IfAny[Number] = None
    seconds: IfAny[Number] = None


class Training(Part):
    """What was trained on, and how it went.

    Attributes:
        data: Name of the training images.
        labels: Which class is which output, in words.
        skipped: Training images that could not be used.
        epochs: A row for each epoch.
    """

    data: str | None = None
    labels: str | None = None
    skipped: tuple[SkippedImage, ...] = ()
    epochs: tuple[TrainedEpoch, ...] = ()


class Validation(Part):
    """Figures of the last epoch on the validation images.

    Attributes:
        data: Name of the images.
        val_top1: Share of the images whose label was predicted first, in percent.
        val_loss: Mean cross-entropy, in nats.
        val_cosine: Mean cosine of the embeddings with the teacher's.
        val_knn: Accuracy of a vote of each one's nearest among them, in percent.
        val_recall1: Share of those whose nearest is of their class, in percent.
        float: Figures of the teacher's embeddings.
        paired: What lies between the two, image by image.
    """

    data: str | None = None
    val_top1: IfAny[Number] = None
    val_loss: IfAny[Number] = None
    val_cosine: IfAny[Number] = None
    val_knn: IfAny[Number] = None
    val_recall1: IfAny[Number] = None
    float: IfAny[EmbeddingFigures] = None
    paired: IfAny[PairedEmbeddings] = None


class TrainResult(RunResult):
    """A trained model. A run that was finished earlier has None for what its files do not say.

    Attributes:
        training: What was trained on, and how it went.
        evaluation: Figures on validation images, if there are some.
        seed: Seed of random weights, order and augmentation.
        device: Device that it was computed on.
    """

    command: Literal["train"] = "train"
    training: Training | None
    evaluation: Validation | None
    seed: int | None
    device: str | None
