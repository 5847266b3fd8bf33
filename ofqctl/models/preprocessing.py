"""What a document may say about the preprocessing of images, checked before it is used."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ofqctl.documents import field_fault

_Length = Annotated[int, Field(strict=True, ge=1, le=2**14)]
_Mean = Annotated[float, Field(strict=True, ge=-(2.0**16), le=2.0**16)]
_Scale = Annotated[float, Field(strict=True, ge=2.0**-16, le=2.0**16)]  # pixels divided by it are finite in float32
_Crop = Annotated[float, Field(strict=True, gt=0.0, le=8.0)]
_Size = Annotated[list[_Length], Field(min_length=3, max_length=3)]
_Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "hamming", "box", "random"]

_CropMode = Literal["center", "squash", "border"]


class Preprocessing(BaseModel):
    """The keys of timm's data config, and of its description of weights, that decide how images are prepared.

    Attributes:
        input_size: Channels, height and width.
        interpolation: Name of the filter that resizes images.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.
        crop_pct: Share of the resized image that is kept.
        crop_mode: How images are cut to their size.
    """

    model_config = ConfigDict(extra="allow")
    input_size: _Size | None = None
    interpolation: _Interpolation | None = None
    mean: list[_Mean] | None = None
    std: list[_Scale] | None = None
    crop_pct: _Crop | None = None
    crop_mode: _CropMode | None = None


class DataConfig(Preprocessing):
    """timm's data config: it has them all, and a mean and a standard deviation for each channel."""

    input_size: _Size
    interpolation: _Interpolation
    mean: list[_Mean]
    std: list[_Scale]
    crop_pct: _Crop
    crop_mode: _CropMode

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> "DataConfig":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_size[0]:
                raise ValueError(f"{name}: {len(values)} values for {self.input_size[0]} channels")
        return self


def check_preprocessing(values: dict[str, Any], form: type[Preprocessing] = Preprocessing) -> dict[str, Any]:
    """``values``, if those of its keys that decide how images are prepared can be used.

    Args:
        values: A description of weights by timm, or a data config.
        form: Which of the two.

    Raises:
        ValueError: One cannot; the message names it.
    """
    try:
        form.model_validate(values)
    except ValidationError as fault:
        raise ValueError(field_fault(fault)) from fault
    return values


def check_data_config(values: dict[str, Any]) -> dict[str, Any]:
    """The same for a data config."""
    return check_preprocessing(values, DataConfig)
