"""Figures of a model on labelled images."""

from ofqctl.results.document import Part


class Accuracy(Part):
    """Figures of one model.

    Attributes:
        top1: Share of the images whose label was predicted first, in percent.
        top5: Share of the images whose label was among the first five, in percent.
        loss: Mean cross-entropy, in nats.
        images: Number of images.
        images_per_second: Speed of the forward passes, summed over all processes.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float


class Paired(Part):
    """The difference of two models on the same images, image by image.

    Attributes:
        difference: Mean difference of top-1, or of what else is right or wrong of an image, in percentage points.
        standard_error: Standard error of that.
        gained: Number of images that only the second model has right.
        lost: Number of images that only the first model has right.
    """

    difference: float
    standard_error: float
    gained: int
    lost: int
