"""What a model said of each image, as `ofqctl evaluate --save-predictions` wrote it."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ofqctl.errors import ArtifactError

_COLUMNS = {"top1": ("right", 100.0), "loss": ("loss", 1.0)}  # of a figure, and what a value is multiplied with


@dataclass(frozen=True)
class Predictions:
    """Images, and for each figure that is a mean over them its value for each, (images,), if all are finite."""

    images: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]


def _within(names: list[str]) -> tuple[str, ...]:
    """Names of images without the folder that all of them lie in, so that a copy elsewhere has the same images."""
    folders = [str(PurePosixPath(name).parent) for name in names]
    ahead = os.path.commonpath(folders) if folders else ""
    return tuple(name.removeprefix(ahead).lstrip("/") for name in names)


def read_predictions(path: Path) -> Predictions | None:
    """Read such a file; None if there is none.

    Raises:
        ArtifactError: It is damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        values = {
            figure: factor * np.array([float(row[column]) for row in rows])
            for figure, (column, factor) in _COLUMNS.items()
            if rows and column in rows[0]
        }
        finite = {figure: column for figure, column in values.items() if np.isfinite(column).all()}
        return Predictions(_within([row["image"] for row in rows]), finite)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error
