"""Which images were used, and how they were prepared."""

from ofqctl.results.document import Part


class SkippedImage(Part):
    """An image that could not be used, and why."""

    image: str
    reason: str


class Classes(Part):
    """Numbers of classes: ``present`` in the data (None if unknown), and outputs of the ``model``."""

    present: int | None
    model: int


class Prepared(Part):
    """The preprocessing of images.

    Attributes:
        input_size: Channels, height and width.
        interpolation: Name of the filter that resizes images.
        crop_pct: Share of the resized image that is kept.
        crop_mode: How images are cut to their size.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class MeasuredOn(Part):
    """The labelled images that something was measured on.

    Attributes:
        data: Name of the data.
        classes: Numbers of classes.
        labels: Which class is which output, in words.
        preprocessing: How the images were prepared.
        skipped: Images that could not be used.
        turned: Number of images that were turned upright, as their EXIF orientation says.
        data_notes: What was guessed about the data, or left out, one sentence each.
    """

    data: str
    classes: Classes
    labels: str
    preprocessing: Prepared
    skipped: tuple[SkippedImage, ...]
    turned: int
    data_notes: tuple[str, ...]


class CalibratedOn(Part):
    """The calibration images.

    Attributes:
        data: Name of the data, or ``synthetic``.
        images: Number of images.
        turned: Number of images that were turned upright, as their EXIF orientation says.
    """

    data: str
    images: int
    turned: int
