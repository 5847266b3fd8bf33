"""Files with a row for each image."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ofqctl.errors import DataError

Columns = Mapping[str, Tensor]  # (N,) or (N, D) each, on the CPU


def check_kind(option: str, path: Path, kinds: Sequence[str]) -> None:
    """Check that the suffix of a file is one of ``kinds``.

    Raises:
        DataError: It is not.
    """
    if path.suffix not in kinds:
        raise DataError(f"{option} {path}: unknown kind '{path.suffix}'; allowed: {', '.join(kinds)}")


def write_parquet(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Write a column ``image`` with the names of N images, then the others, of which (N, D) is lists of D numbers."""
    import pyarrow
    from pyarrow import parquet

    def as_array(values: Tensor) -> Any:
        flat = pyarrow.array(values.numpy().ravel())
        return flat if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])

    arrays = {name: as_array(values) for name, values in columns.items()}
    parquet.write_table(pyarrow.table({"image": _as_text(names), **arrays}), path)


def write_csv(path: Path, names: Sequence[str], columns: Columns) -> None:
    """Write the same of columns (N,); a float32 is written with all digits of its value."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", *columns])
        rows.writerows(zip(_as_text(names), *(values.tolist() for values in columns.values()), strict=True))


def _as_text(names: Sequence[str]) -> list[str]:
    """Names as UTF-8 can hold them: of a file's name, bytes that are no UTF-8 are written as escapes."""
    return [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names]
