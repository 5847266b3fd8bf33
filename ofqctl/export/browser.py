"""A folder that runs a model in a browser: a page, the model, what the page must know, and the runtime if it is there.

The page loads the model with onnxruntime-web, in WebAssembly, from its own folder or from the network.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofqctl import __version__
from ofqctl.data import LabelSpace, label_names
from ofqctl.errors import ArtifactError, PackageError
from ofqctl.export.metadata import Description
from ofqctl.files import Kind

MODEL, ABOUT = "model.onnx", "model.json"
TRIED = "1.30.0"  # version of onnxruntime-web that the network gives
_SOURCES = Path(__file__).with_name("page")
_MODULE = "ort.wasm.min.mjs"
_RUNTIME = (_MODULE, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_NETWORK = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{TRIED}/dist/"
_TWO_BITS = "1.24"  # the oldest version that knows 2-bit integers
_WRITER = "ofqctl "
_INSTALL = "npm install onnxruntime-web, then --ort-web node_modules/onnxruntime-web"
_FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class WebRuntime:
    """The files of onnxruntime-web.

    Attributes:
        version: Its version.
        folder: The folder of its files, which are copied; None if pages load them from the network.
    """

    version: str
    folder: Path | None

    @property
    def files(self) -> list[Path]:
        """The files to copy."""
        return [] if self.folder is None else [self.folder / name for name in _RUNTIME]


def web_runtime(folder: Path | None) -> WebRuntime:
    """The onnxruntime-web in ``folder``, which is its npm package or ``dist`` in it; None is that of the network.

    Raises:
        PackageError: It is not there.
    """
    if folder is None:
        return WebRuntime(TRIED, None)
    inside = folder / "dist" if (folder / "dist").is_dir() else folder
    absent = [name for name in _RUNTIME if not (inside / name).is_file()]
    if absent:
        raise PackageError(
            f"--ort-web {folder}: no onnxruntime-web of version 1.20 or newer; {absent[0]} is missing", hint=_INSTALL
        )
    with (inside / _MODULE).open(encoding="utf-8", errors="replace") as file:
        said = re.search(r"ONNX Runtime Web v(\d+\.\d+\.\d+)", file.read(1000))
    if said is None:
        raise PackageError(f"--ort-web {folder}: {_MODULE} does not say its version", hint=_INSTALL)
    return WebRuntime(said[1], inside)


def check_runs(runtime: WebRuntime, oldest: str) -> None:
    """Check that onnxruntime-web is new enough for a file.

    Args:
        runtime: What the page loads.
        oldest: The oldest version of ONNX Runtime that loads the file.

    Raises:
        PackageError: It is older.
    """
    if _ordered(runtime.version) < _ordered(oldest):
        older = "; --target portable stores 2-bit weights as older versions load them" if oldest == _TWO_BITS else ""
        raise PackageError(
            f"onnxruntime-web {runtime.version} cannot load this model, which needs {oldest} or newer",
            hint=f"{_INSTALL}{older}",
        )


def check_shown(data_config: Mapping[str, Any], num_classes: int, where: str) -> None:
    """Check that the page can prepare pictures for a model, and show its classes.

    Args:
        data_config: Preprocessing of the model.
        num_classes: Number of its classes.
        where: Start of an error message.

    Raises:
        ArtifactError: It cannot.
    """
    channels, interpolation = data_config["input_size"][0], data_config["interpolation"]
    if num_classes < 1:
        raise ArtifactError(
            f"{where}: has no classes, which is what a page shows", hint="--onnx exports it without one"
        )
    if channels not in (1, 3):
        raise ArtifactError(f"{where}: takes {channels} channels; a page shows pictures to models with 1 or 3")
    if interpolation not in _FILTERS:
        raise ArtifactError(f"{where}: resizes images at {interpolation}; allowed are {', '.join(_FILTERS)}")


def write_page(folder: Path, described: Description, runtime: WebRuntime, oldest: str) -> list[str]:
    """Write the page and what it needs beside the model, which lies in ``folder`` already.

    Args:
        folder: Where to write.
        described: Description of the model.
        runtime: What the page loads.
        oldest: The oldest version of ONNX Runtime that loads the model.

    Returns:
        The names of all files in the folder.
    """
    for path in (*sorted(_SOURCES.iterdir()), *runtime.files):
        shutil.copyfile(path, folder / path.name)
    config = described.data_config
    names = None if described.label_names is None else tuple(described.label_names)
    about: dict[str, Any] = {
        "written_by": f"{_WRITER}{__version__}",
        "title": described.architecture,
        "recipe": described.recipe,
        "model": MODEL,
        "bytes": (folder / MODEL).stat().st_size,
        "runtime": {
            "folder": _NETWORK if runtime.folder is None else "./",
            "version": runtime.version,
            "oldest": oldest,
        },
        "preprocessing": {name: config[name] for name in _PREPROCESSING},
        "labels": list(label_names(LabelSpace(described.num_classes, names))),
    }
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def _is_page(directory: Path) -> bool:
    """Whether this program wrote the page in ``directory``."""
    with suppress(OSError, ValueError, RecursionError):
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        return isinstance(about, dict) and str(about.get("written_by")).startswith(_WRITER)
    return False


PAGE = Kind("a page", "--web", _is_page)


def stale(runtime: WebRuntime) -> Sequence[str]:
    """Files of an earlier page that this one does not have: the runtime's, if the network gives it."""
    return () if runtime.files else _RUNTIME


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
