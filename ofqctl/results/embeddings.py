"""Figures of a model without a classifier."""

from ofqctl.results.accuracy import Paired
from ofqctl.results.data import MeasuredOn
from ofqctl.results.document import Number, Part


class Likeness(Part):
    """How alike embeddings, or patch tokens, are to those of the float model on the same images.

    Attributes:
        cosine: Mean cosine.
        lowest_cosine: That of the image with the lowest.
        relative_error: Mean length of the difference, relative to the length of what the float model gives.
    """

    cosine: float
    lowest_cosine: float
    relative_error: float


class EmbeddingFigures(Part):
    """Figures of one model.

    Attributes:
        features: Length of an embedding.
        images: Number of images.
        images_per_second: Speed of the forward passes, summed over all processes.
        knn: Accuracy of a vote of the nearest images, in percent; None without labels.
        recall1: Share of the images whose nearest image is of their class, in percent; None without labels.
        likeness: Likeness of the embeddings to the float model's; None for that model, and without one.
        tokens: The same of the patch tokens, if they were asked for.
    """

    features: int
    images: int
    images_per_second: float
    knn: Number
    recall1: Number
    likeness: Likeness | None
    tokens: Likeness | None


class PairedEmbeddings(Part):
    """Differences of two models in what ``knn`` and ``recall1`` say, image by image."""

    knn: Paired
    recall1: Paired


class Neighbours(Part):
    """How images were found by their embeddings.

    Attributes:
        k: Number of nearest images that voted.
        vote: What each counts.
        index: What they were looked up among.
        index_images: Number of images in that.
    """

    k: int
    vote: str
    index: str
    index_images: int


class ComparedEmbeddings(MeasuredOn):
    """The float and the quantized model on the same images.

    Attributes:
        float: Figures of the float model.
        quantized: Figures of the quantized model.
        paired: Their differences; None without labels.
        neighbours: How images were found; None without labels.
    """

    float: EmbeddingFigures
    quantized: EmbeddingFigures
    paired: PairedEmbeddings | None
    neighbours: Neighbours | None
