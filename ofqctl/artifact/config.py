"""``config.json``: what a run directory says about itself, in timm's layout plus ``quantization_config``."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ofqctl import __version__
from ofqctl.errors import ArtifactError
from ofqctl.files import located
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.former import plan_from_format_1, recipe_from_format_1, with_current_keys

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)
METADATA_KEY = "ofqctl_format"  # key in the metadata of model.safetensors
CONFIG_KEY = "config"  # key in the metadata of a self-describing file


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
    num_classes: int
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    data_config: dict[str, Any]
    label_names: list[str] | None = None
    source: str
    quantization_config: QuantizationConfig

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of one image, (3, H, W)."""
        channels, height, width = self.data_config["input_size"]
        return channels, height, width

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=False), indent=1) + "\n"


def read_config(directory: Path) -> RunConfig:
    """Read and check ``config.json``.

    Raises:
        ArtifactError: Not a run directory, or the file is damaged, foreign or of a future version.
    """
    path = located(directory, "config.json")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(f"{directory}: not a run directory: no config.json in it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> RunConfig:
    """Check the text of a ``config.json``.

    Args:
        text: JSON.
        where: Path of the file, for messages.

    Raises:
        ArtifactError: The text is damaged, foreign or of a future version.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where}: cannot be read: {error}") from error
    quantization = values.get("quantization_config") if isinstance(values, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "ofqctl":
        hint = f"a float model is named `local-dir:{Path(where).parent}`"
        raise ArtifactError(f"{where}: not written by ofqctl", hint=hint)
    check_version(quantization.get("format_version"), where)
    if quantization["format_version"] == 1:
        quantization |= {
            "recipe": recipe_from_format_1(quantization.get("recipe") or {}),
            "plan": plan_from_format_1(quantization.get("plan") or {}),
        }
    if isinstance(quantization.get("recipe"), dict):
        quantization["recipe"] = with_current_keys(quantization["recipe"])
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{where}: {key}: {first['msg']}") from error


def check_version(version: object, where: str) -> None:
    """Check that a format version can be read.

    Raises:
        ArtifactError: It cannot be read.
    """
    if version not in READABLE:
        raise ArtifactError(
            f"{where}: format version {version!r}, this program reads versions 1 and {FORMAT_VERSION}",
            hint="a newer ofqctl may read it: `pip install --upgrade ofqctl`",
        )
