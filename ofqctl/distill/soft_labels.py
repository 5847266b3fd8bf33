"""Soft labels on disk: what a teacher says of crops that were drawn once, so that training needs no teacher.

A file holds, for each image and each of its views, the crop (box in the decoded image, and whether it is mirrored) and
the most likely classes with their probabilities; what these leave of 1 is spread evenly over the other classes (Shen
and Xing, ECCV 2022, arXiv 2112.01528; as VVTQ uses them). A label is valid for its crop alone, so nothing but the crop
may be augmented.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofqctl.documents import field_fault, parse_json
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.files import replaced_file
from ofqctl.recipe.training import Augmentation
from ofqctl.registry import Frozen

_METADATA = "ofqctl_soft_labels"
_GEOMETRY = ("scale", "ratio", "hflip")
_OTHERS = {"color_jitter": 0, "auto_augment": None, "random_erase": 0, "mixup": 0, "cutmix": 0, "repeats": 1}  # off


class AboutSoftLabels(Frozen):
    """What soft labels are of.

    Attributes:
        format: Version of the file.
        teacher: Name of the teacher.
        teacher_digest: Digest of its weights.
        data: Identity of the images, see `ImageData.identity`.
        input_size: Size of a crop when the teacher sees it, (channels, H, W).
        interpolation: How crops are resized.
        scale: Share of the image's area that a crop takes, smallest and largest.
        ratio: Its aspect ratio, smallest and largest.
        hflip: Probability that it is mirrored.
        views: Number of crops of each image.
        top: Number of classes whose probability is stored.
        classes: Number of classes.
        seed: Seed that the crops were drawn from.
    """

    format: Literal[1] = 1
    teacher: str
    teacher_digest: str
    data: dict[str, Any]
    input_size: tuple[int, int, int]
    interpolation: str
    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    views: int
    top: int
    classes: int
    seed: int


def labels_digest(path: Path) -> str:
    """SHA-256 of a file of soft labels, in hexadecimal digits.

    Raises:
        ArtifactError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class SoftLabels:
    """Crops and what a teacher says of them.

    Attributes:
        about: What they are of.
        boxes: Top, left, height and width in pixels; int32, (images, views, 4). Of an image that could not be read, 0.
        flips: Whether a crop is mirrored; bool, (images, views).
        likely: The most likely classes; int32, (images, views, top).
        probabilities: Their probabilities; float16, (images, views, top).
    """

    about: AboutSoftLabels
    boxes: Tensor
    flips: Tensor
    likely: Tensor
    probabilities: Tensor

    def write(self, path: Path) -> None:
        """Write the file, at one moment.

        Raises:
            ArtifactError: The disk is full or cannot be written.
        """
        with replaced_file(path) as fresh:
            safetensors.torch.save_file(self._tensors(), fresh, {_METADATA: self.about.model_dump_json()})

    @classmethod
    def read(cls, path: Path) -> "SoftLabels":
        """Read a file.

        Raises:
            ArtifactError: It is missing, damaged, or of something else.
        """
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(_METADATA)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}") from error
        if text is None:
            raise ArtifactError(f"{path}: no soft labels", hint="`ofqctl distill-cache` writes them")
        try:
            about = AboutSoftLabels.model_validate(parse_json(text, str(path)))
        except ValidationError as error:
            raise ArtifactError(f"{path}: {field_fault(error)}") from error
        _check_tensors(tensors, about, path)
        return cls(about, **tensors)

    def view(self, image: int, number: int) -> tuple[tuple[int, ...], bool]:
        """Box and mirroring of a crop; ``number`` counts on beyond the number of views."""
        place = number % self.about.views
        return tuple(self.boxes[image, place].tolist()), bool(self.flips[image, place])

    def answers(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The teacher's log-probabilities of crops.

        Args:
            images: Numbers of the images, (B,).
            numbers: Numbers of their crops, (B,), as in :meth:`view`.

        Returns:
            (B, classes), float32.
        """
        views = numbers % self.about.views
        likely = self.likely[images, views].to(torch.int64)
        known = self.probabilities[images, views].float()
        others = max(1, self.about.classes - self.about.top)
        rest = (1.0 - known.sum(dim=1, keepdim=True)).clamp(min=1e-6) / others
        spread = rest.expand(-1, self.about.classes).clone()
        return spread.scatter_(1, likely, known.clamp(min=1e-7)).log_()

    def check(
        self, teacher: nn.Module, data: Mapping[str, Any], config: Mapping[str, Any], augmentation: Augmentation
    ) -> None:
        """Check that training may use them.

        Args:
            teacher: The teacher that the recipe names.
            data: Identity of the training images.
            config: Preprocessing of the student.
            augmentation: Augmentation of the recipe.

        Raises:
            RecipeError: They were made by another teacher or of other images, their crops were drawn in another way,
                or the recipe changes more of an image than the crop.
        """
        own = self.about
        plain = Augmentation()
        more = sorted(key for key in _OTHERS if getattr(augmentation, key) not in (getattr(plain, key), _OTHERS[key]))
        if more:
            raise RecipeError(
                f"training.augmentation: soft labels are valid for their crops alone, and {', '.join(more)} would "
                "change the images",
                hint="--set " + " ".join(f"training.augmentation.{key}={_word(_OTHERS[key])}" for key in more),
            )
        seen = {key: getattr(augmentation, key) for key in _GEOMETRY}
        seen |= {"input_size": tuple(config["input_size"]), "interpolation": config["interpolation"]}
        seen |= {"data": dict(data), "teacher_digest": weights_digest(teacher)}
        words = {"teacher_digest": "the weights of the teacher", "data": "the images"}
        for key, now in seen.items():
            same = _same_images(now, own.data) if key == "data" else now == getattr(own, key)
            if not same:
                what = words.get(key, f"`{key}`, {getattr(own, key)} and now {now},")
                raise RecipeError(
                    f"soft labels of {own.teacher}: {what} are others than those that they were made with",
                    hint="`ofqctl distill-cache` with the model, data and recipe of this training makes new ones",
                )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).contiguous() for name in _SHAPES}


_SHAPES = {
    "boxes": (torch.int32, 4),
    "flips": (torch.bool, None),
    "likely": (torch.int32, "top"),
    "probabilities": (torch.float16, "top"),
}


def _same_images(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same images, whatever their classes are called."""
    return (one["images"], one["digest"]) == (other.get("images"), other.get("digest"))


def _check_tensors(tensors: dict[str, Tensor], about: AboutSoftLabels, path: Path) -> None:
    images = len(tensors["boxes"]) if "boxes" in tensors else 0
    for name, (dtype, last) in _SHAPES.items():
        width = getattr(about, last) if isinstance(last, str) else last
        shape = (images, about.views) + (() if width is None else (width,))
        found = tensors.get(name)
        if found is None or found.dtype != dtype or tuple(found.shape) != shape:
            raise ArtifactError(f"{path}: {name} is not {dtype} of shape {shape}")
    if tensors.keys() != _SHAPES.keys():
        raise ArtifactError(f"{path}: has tensors of another kind of file")
    likely = tensors["likely"]
    if likely.numel() and not 0 <= int(likely.min()) <= int(likely.max()) < about.classes:
        raise ArtifactError(f"{path}: likely has classes outside of 0..{about.classes - 1}")


def _word(value: object) -> str:
    return "null" if value is None else str(value)


def weights_digest(model: nn.Module) -> str:
    """A digest of the weights of a model, by name."""
    found = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
