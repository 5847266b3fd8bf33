"""The description of a model in the metadata of an ONNX file."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import onnx
from pydantic import AfterValidator, BaseModel, Field, RootModel

from ofqctl import __version__
from ofqctl.documents import check_lengths, checked, parse_json
from ofqctl.errors import ArtifactError
from ofqctl.export.arithmetic import ExportedWeight
from ofqctl.export.sites import Product
from ofqctl.models.preprocessing import check_data_config
from ofqctl.results.onnx import Described, Said, SaidExactness, SaidProduct, SaidWeight

FORMAT_VERSION = 2
_TARGETS = {"integer": "onnxruntime", "qdq": "portable"}  # what a file of version 1 calls them
PREFIX = "ofqctl."


class Description(Described):
    """The model in a file, with values that can be used."""

    format_version: int = FORMAT_VERSION
    written_by: str = __version__
    num_classes: int = Field(ge=0, le=2**20)
    model_args: Annotated[dict[str, Any], AfterValidator(check_lengths)]
    data_config: Annotated[dict[str, Any], AfterValidator(check_data_config)]


def set_metadata(model: onnx.ModelProto, /, **entries: BaseModel | Mapping[str, Any]) -> None:
    """Write entries into the metadata of a model, each as JSON."""
    known = {prop.key: prop.value for prop in model.metadata_props}
    for key, entry in entries.items():
        values = entry.model_dump(mode="json") if isinstance(entry, BaseModel) else entry
        known[PREFIX + key] = json.dumps(values, separators=(",", ":"))
    model.producer_name, model.producer_version = "ofqctl", __version__
    onnx.helper.set_model_props(model, known)


def read_description(properties: Mapping[str, str], where: str) -> Description | None:
    """Read the description in a file, or None if it was not written by this program.

    Args:
        properties: Metadata of the file.
        where: Name of the file, for messages.

    Raises:
        ArtifactError: The description is damaged or of an unknown version.
    """
    if f"{PREFIX}model" not in properties:
        return None
    values = read_entry(properties, "model", where)
    if values.get("format_version") == 1:
        values |= {"format_version": FORMAT_VERSION, "target": _TARGETS.get(str(values.pop("style", None)))}
    if values.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: version {values.get('format_version')!r}, this program reads version {FORMAT_VERSION}",
            hint="a newer ofqctl may read it: `pip install --upgrade ofqctl`",
        )
    described = checked(Description, values, f"{where}: its metadata")
    if described.label_names is not None and len(described.label_names) != described.num_classes:
        names = len(described.label_names)
        raise ArtifactError(f"{where}: its metadata: {names} label_names for {described.num_classes} classes")
    return described


class _Weights(RootModel[dict[str, SaidWeight]]):
    pass


class _Products(RootModel[dict[str, SaidProduct]]):
    pass


class _Verification(Said):
    exactness: SaidExactness


class _Run(Said):
    sha256: str


_FORMS: dict[str, type[BaseModel]] = {
    "weights": _Weights,
    "products": _Products,
    "verification": _Verification,
    "run": _Run,
}


def read_entry(properties: Mapping[str, str], key: str, where: str) -> dict[str, Any]:
    """Read one entry; empty if it is missing.

    Raises:
        ArtifactError: The entry is damaged.
    """
    if PREFIX + key not in properties:
        return {}
    said = f"{where}: its metadata `{PREFIX}{key}`"
    values = parse_json(properties[PREFIX + key], said)
    if not isinstance(values, dict):
        raise ArtifactError(f"{said} cannot be read: not a mapping")
    checked(_FORMS.get(key, Said), values, said)
    return values


def about_weights(written: Mapping[str, ExportedWeight]) -> dict[str, dict[str, Any]]:
    """How each weight is stored, as a reader needs it for decoding."""
    return {
        name: {
            "bits": weight.range.bits,
            "shape": list(weight.shape),
            "transposed": weight.transposed,
        }
        | (_arithmetic(weight) if weight.even else {})
        for name, weight in written.items()
    }


def _arithmetic(weight: ExportedWeight) -> dict[str, Any]:
    """How to compute evenly spaced points from codes; others are looked up."""
    zero = weight.zero.reshape(-1).tolist() if weight.zero.ndim else int(weight.zero)
    return {"multiplier": weight.multiplier, "zero": zero}


def about_products(products: Mapping[str, Product]) -> dict[str, dict[str, Any]]:
    """How each product is computed, and why not on integers if it is not."""
    return {
        name: {
            "kind": product.kind,
            "weights": None if product.weight is None else product.weight.range.bits,
            "activations": [operand.range.bits for operand in product.operands],
        }
        | ({"float": product.obstacle} if product.obstacle else {})
        for name, product in products.items()
    }
