"""Opened data: decoded images with labels in the model's label space."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ofqctl.data.labels import LabelMapping
from ofqctl.data.sources.files import image_formats
from ofqctl.data.sources.rows import TableRecords
from ofqctl.data.sources.source import Record, RecordStream, Source
from ofqctl.data.spec import LabelSpace
from ofqctl.errors import DataError

UNLABELLED = -1
# Exceptions that Pillow's readers raise on damaged files, beside its own.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = "turned upright"
# Largest values of deep grey images, of which the smallest that is enough says what white is.
_WHITES = {"I": (255, 65535), "F": (1.0, 255.0, 65535.0)}


class UnusableImageError(Exception):
    """One image that cannot be decoded or has no label; the loader skips and counts it.

    Args:
        name: Path or row of the image.
        reason: Why it cannot be used.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason


class ImageData:
    """Images with labels in the model's label space; indexable, or only iterable if streamed.

    Items are (RGB image, label); the label is -1 throughout if the data is not labelled.

    Args:
        source: The images with class names.
        mapping: The label of each class name; None for unlabelled data.
        space: The labels of the model, for unlabelled data.
        notes: What was guessed or left out, in addition to the notes of source and mapping.

    Attributes:
        name: Name of the data: its path and split.
        labelled: Whether the images have labels.
        labels: The label of each class that the data declares; empty if it declares none.
        class_count: Number of classes that occur; None if unknown.
        image_count: Number of images; None if unknown, as for most streams.
        label_space: The labels; those of the model, if one was given.
        mapping: How classes were mapped to labels, one sentence.
        notes: Everything that was guessed or left out, a sentence each.
    """

    def __init__(
        self, source: Source, mapping: LabelMapping | None, space: LabelSpace, notes: Sequence[str] = ()
    ) -> None:
        self.name = source.name + source.part
        self._folder = source.name
        self.labelled = mapping is not None
        self.class_count = source.class_count
        self.image_count = len(source.records) if isinstance(source.records, Sequence) else source.declared
        self.label_space = mapping.space if mapping else space
        self.mapping = mapping.sentence if mapping else "the images are unlabelled"
        self.notes = (*source.notes, *(mapping.notes if mapping else ()), *notes)
        self._records = source.records
        self._labels = mapping.labels if mapping else {}
        declared = (source.classes.names if source.classes else None) or ()
        self.labels = {name: self._labels[name] for name in declared if name in self._labels}

    @property
    def streaming(self) -> bool:
        """Whether the images can only be read in order, from first to last."""
        return not isinstance(self._records, Sequence)

    def __len__(self) -> int:
        if not isinstance(self._records, Sequence):
            raise TypeError(f"{self.name} is streamed: it has no index, and its length is unknown")
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.load(self.record(index))

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return map(self.load, self._records)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this data from other data, wherever it lies: number of images, classes, and a digest.

        The digest is over the images' paths within their folder, or over the labels and sizes of a table's rows; a
        stream has none.
        """
        records = self._records
        digest = None
        if isinstance(records, TableRecords):
            digest = records.digest()
        elif isinstance(records, Sequence):
            names = (f"{record.name.removeprefix(self._folder)}\0{record.class_name}\n" for record in records)
            digest = blake2b("".join(names).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return {"images": self.image_count, "classes": self.labels, "digest": digest}

    def record(self, index: int) -> Record:
        """One undecoded image."""
        if not isinstance(self._records, Sequence):
            raise TypeError(f"{self.name} is streamed: it has no index")
        return self._records[index]

    def stream(self, seed: int | None = None, rank: int = 0, world: int = 1) -> Iterator[Record]:
        """The undecoded images of streamed data, shuffled if there is a ``seed``; only the part of one process."""
        if isinstance(self._records, Sequence):
            raise TypeError(f"{self.name} is not streamed")
        records: RecordStream = self._records if seed is None else self._records.shuffled(seed)
        return iter(records if world == 1 else records.shared(rank, world))

    def faulty_headers(self, part: slice = slice(None)) -> Iterator[tuple[str, str] | None]:
        """Look at the header of each image of a ``part``: its name and what is wrong with it, or None.

        Raises:
            DataError: The data is streamed.
        """
        if not isinstance(self._records, Sequence):
            raise DataError(
                f"{self.name}: a stream cannot be looked through before training", hint="leave out --streaming"
            )
        for index in range(len(self._records))[part]:
            record = self._records[index]
            fault = header_fault(record)
            yield None if fault is None else (record.name, fault)

    def load(self, record: Record) -> tuple[Image.Image, int]:
        """Decode one record and look its label up.

        Raises:
            UnusableImageError: It cannot be decoded, or has no label although the data is labelled.
            DataError: Its class is unknown, which only shows here for streamed data.
        """
        return decode_rgb(record), self._label(record)

    def _label(self, record: Record) -> int:
        if not self.labelled:
            return UNLABELLED
        if record.class_name is None:
            raise UnusableImageError(record.name, "has no label")
        if record.class_name not in self._labels:
            raise DataError(
                f"{record.name}: class '{record.class_name}' is unknown among {len(self._labels)}",
                hint="--class-map FILE says which class is which label",
            )
        return self._labels[record.class_name]


def decode_rgb(record: Record) -> Image.Image:
    """The image of a record in RGB and upright, whatever its mode: grey, palette, CMYK, with alpha or 16 bits deep.

    One rule for all sources: an image is turned as its EXIF orientation says, which `was_turned` tells afterwards.

    Raises:
        UnusableImageError: It cannot be read or decoded.
    """
    try:
        if isinstance(record.image, Image.Image):
            return _to_rgb(record.image)
        with Image.open(_readable(record.image), formats=image_formats()) as image:
            return _upright(image)
    except UnidentifiedImageError as error:
        raise UnusableImageError(record.name, "is not an image of a known format") from error
    except _DECODE_ERRORS as error:
        raise UnusableImageError(record.name, f"cannot be decoded: {error}") from error


def was_turned(image: Image.Image) -> bool:
    """Whether `decode_rgb` turned or mirrored the image as its EXIF orientation says."""
    return _TURNED in image.info


def _upright(image: Image.Image) -> Image.Image:
    stored = _orientation(image)
    image.load()
    left = _orientation(image)  # some of Pillow's readers turn the image themselves
    upright = _to_rgb(image)
    if left in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[left])
    if stored in _UPRIGHT:
        upright.info[_TURNED] = True
    return upright


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODE_ERRORS:  # damaged EXIF; the pixels may be intact
        return 1


def header_fault(record: Record) -> str | None:
    """Why a record is no image, as far as its first bytes tell, which is cheap; None if it is one."""
    if isinstance(record.image, Image.Image):
        return None
    try:
        with Image.open(_readable(record.image), formats=image_formats()):
            return None
    except UnidentifiedImageError:
        return "is not an image of a known format"
    except _DECODE_ERRORS as error:
        return f"cannot be read: {error}"


def _readable(image: str | bytes) -> str | BytesIO:
    if isinstance(image, bytes):
        return BytesIO(image)
    if "://" not in image:
        return image
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(image, "rb") as file:
        return BytesIO(file.read())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _grey(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """An image of 16 or 32 bits a pixel at 8 bits; `convert` would clip it to white.

    Formats with 16 bits say what white is. Of 32-bit integers and floats the range of their values says it.

    Raises:
        ValueError: The range is none that images have.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((values.astype(np.int32) >> 8).astype(np.uint8))
    low, high = values.min(), values.max()
    white = next((white for white in _WHITES[image.mode] if high <= white), None)
    if white is None or not low >= 0:
        kind = "integers" if image.mode == "I" else "floats"
        raise ValueError(f"32-bit {kind} from {low:g} to {high:g}, of which nothing says what is black and white")
    return Image.fromarray((values * (255 / white) + 0.5).astype(np.uint8))
