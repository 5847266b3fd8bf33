"""``config.json``: what a run directory says about itself, in timm's layout plus ``quantization_config``."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ofqctl import __version__
from ofqctl.documents import check_lengths, checked, digest_of, parse_json, read_text
from ofqctl.errors import ArtifactError
from ofqctl.files import located, replaced_files
from ofqctl.models.preprocessing import check_data_config, check_preprocessing
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.former import plan_from_format_1, recipe_from_format_1, with_current_keys

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)
METADATA_KEY = "ofqctl_format"  # key in the metadata of model.safetensors
CONFIG_KEY = "config"  # key in the metadata of a self-describing file
CONFIG = "config.json"
_DIGEST = "config_sha256"


class ForeignConfigError(ArtifactError):
    """There is no ``config.json``, or another program wrote it."""


class QuantizationConfig(BaseModel):
    """What was quantized and how.

    Attributes:
        quant_method: Always ``ofqctl``.
        format_version: Version of the layout of the run directory.
        written_by: Version of the program.
        recipe: The recipe, with all defaults.
        plan: Every quantized module and what was left in float.
        sha256: SHA-256 of ``model.safetensors``.
        float_bytes: Size of the float model's weights.
    """

    model_config = ConfigDict(extra="forbid")
    quant_method: Literal["ofqctl"] = "ofqctl"
    format_version: int = FORMAT_VERSION
    written_by: str = __version__
    recipe: Recipe
    plan: Plan
    sha256: str
    float_bytes: int
    config_sha256: str | None = None


class RunConfig(BaseModel):
    """The content of ``config.json``.

    Attributes:
        architecture: timm's name of the architecture, without tag.
        num_classes: Number of outputs of the classifier.
        model_args: Further arguments that build the architecture.
        pretrained_cfg: timm's description of weights and preprocessing.
        data_config: Preprocessing, as timm's ``create_transform`` takes it.
        label_names: Class ids in label order, or None if they are not known.
        source: Where the float weights came from.
        quantization_config: What was quantized and how.
    """

    model_config = ConfigDict(extra="forbid")
    architecture: str
    num_classes: int = Field(ge=0, le=2**20)
    model_args: Annotated[dict[str, Any], AfterValidator(check_lengths)]
    pretrained_cfg: Annotated[dict[str, Any], AfterValidator(check_preprocessing)]
    data_config: Annotated[dict[str, Any], AfterValidator(check_data_config)]
    label_names: list[str] | None = None
    source: str
    quantization_config: QuantizationConfig

    @model_validator(mode="before")
    @classmethod
    def _in_current_format(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values in a file of any format, with the keys of the current one."""
        quantization = values.get("quantization_config")
        if not isinstance(quantization, dict):
            return values
        if quantization.get("format_version") == 1:
            quantization = quantization | {
                "recipe": recipe_from_format_1(quantization.get("recipe") or {}),
                "plan": plan_from_format_1(quantization.get("plan") or {}),
            }
        if isinstance(quantization.get("recipe"), dict):
            quantization = quantization | {"recipe": with_current_keys(quantization["recipe"])}
        return values | {"quantization_config": quantization}

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of one image, (3, H, W)."""
        channels, height, width = self.data_config["input_size"]
        return channels, height, width

    def to_json(self) -> str:
        """The text of the file, with its digest."""
        return signed(json.dumps(self.model_dump(mode="json", exclude_defaults=False)))


def signed(text: str) -> str:
    """The text of a ``config.json`` with the digest of what it says.

    Args:
        text: JSON, with any digest or none.
    """
    values = parse_json(text, CONFIG)
    values["quantization_config"][_DIGEST] = config_digest(values)
    return json.dumps(values, indent=1) + "\n"


def config_digest(values: dict[str, Any]) -> str:
    """Digest of the values in a ``config.json`` but itself; with that of the weights, it covers all that computes."""
    quantization = {key: value for key, value in values["quantization_config"].items() if key != _DIGEST}
    return digest_of(values | {"quantization_config": quantization})


def read_config(directory: Path) -> RunConfig:
    """Read and check ``config.json``.

    Raises:
        ArtifactError: Not a run directory, or the file is damaged, foreign, of a future version, or was changed.
    """
    return parse_config(_text_in(directory), str(directory / CONFIG))


def sign_config(directory: Path) -> None:
    """Accept ``config.json`` as it is, after a change by hand: give it the digest of what it says now.

    Raises:
        ArtifactError: It cannot be used, or not be written.
    """
    with replaced_files(directory) as fresh:
        text = _text_in(directory)
        parse_config(text, str(directory / CONFIG), as_it_is=True)
        (fresh / CONFIG).write_bytes(signed(text).encode())


def _text_in(directory: Path) -> str:
    path = located(directory, CONFIG)
    if not path.exists():
        raise ForeignConfigError(f"{directory}: not a run directory: no {CONFIG} in it")
    return read_text(path)


def parse_config(text: str, where: str, *, as_it_is: bool = False) -> RunConfig:
    """Check the text of a ``config.json``.

    Args:
        text: JSON.
        where: Path of the file, for messages.
        as_it_is: Whether the digest is not compared.

    Raises:
        ArtifactError: The text is damaged, foreign, of a future version, or was changed after it was written.
    """
    values = parse_json(text, where)
    quantization = values.get("quantization_config") if isinstance(values, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "ofqctl":
        hint = f"a float model is named `local-dir:{Path(where).parent}`"
        raise ForeignConfigError(f"{where}: not written by ofqctl", hint=hint)
    check_version(quantization.get("format_version"), where)
    if not as_it_is and quantization.get(_DIGEST) not in (None, config_digest(values)):
        raise ArtifactError(
            f"{where}: changed after it was written (its SHA-256 differs from the one in it)",
            hint=f"`ofqctl inspect {Path(where).parent} --accept-config` accepts it as it is now",
        )
    config = checked(RunConfig, values, where)
    names = config.label_names
    if names is not None and len(names) != config.num_classes:
        raise ArtifactError(f"{where}: label_names: {len(names)} names for {config.num_classes} classes")
    return config


def check_version(version: object, where: str) -> None:
    """Check that a format version can be read.

    Raises:
        ArtifactError: It cannot be read.
    """
    if version not in READABLE or isinstance(version, bool):
        raise ArtifactError(
            f"{where}: format version {version!r}, this program reads versions 1 and {FORMAT_VERSION}",
            hint="a newer ofqctl may read it: `pip install --upgrade ofqctl`",
        )
