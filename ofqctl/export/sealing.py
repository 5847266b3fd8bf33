"""The digest of an ONNX file: its last metadata entry, of everything before it.

A protobuf message may be written in parts, one behind the other, so the entry is appended to the finished file, and is
checked without parsing it.
"""

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from ofqctl.errors import ArtifactError
from ofqctl.files import replaced_file

KEY = "ofqctl.sha256"


def sealed(content: bytes) -> bytes:
    """The content of a file, followed by its digest."""
    return content + _entry(hashlib.sha256(content).hexdigest())


def check_seal(path: Path) -> None:
    """Check a file against its digest; one without is of an earlier version, or another program's.

    Raises:
        ArtifactError: It cannot be read, or was changed after it was written.
    """
    content = _content(path)
    body = content[: -len(_entry("0" * 64))]
    if KEY.encode() in content and content != sealed(body):
        raise ArtifactError(
            f"{path}: changed after it was written (its SHA-256 differs from the one in it)",
            hint=f"export it again, or `ofqctl inspect {path} --accept-config` accepts it as it is now",
        )


def seal_again(path: Path) -> None:
    """Accept a file as it is, after a change by another program: give it the digest of what it is now.

    Raises:
        ArtifactError: It cannot be read or written.
    """
    model = read_model(path)
    kept = {prop.key: prop.value for prop in model.metadata_props if prop.key != KEY}
    onnx.helper.set_model_props(model, kept)
    with replaced_file(path) as fresh:
        fresh.write_bytes(sealed(model.SerializeToString()))


def read_model(path: Path) -> onnx.ModelProto:
    """The model in a file, without tensors that lie in other files.

    Raises:
        ArtifactError: It is not an ONNX file, or is truncated.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(_content(path))
    except (DecodeError, ValueError) as error:
        raise ArtifactError(f"{path}: truncated or not an ONNX file: {error}") from error
    return model


def _entry(digits: str) -> bytes:
    entry = onnx.ModelProto(metadata_props=[onnx.StringStringEntryProto(key=KEY, value=digits)])
    content: bytes = entry.SerializeToString()
    return content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
