"""Files of embeddings, with the names of their images."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from ofqctl.files import replaced_file
from ofqctl.jobs.image_rows import check_kind, write_parquet

_KINDS = (".npy", ".safetensors", ".parquet")


def embedding_files(path: Path | None) -> list[Path]:
    """The files that `write_embeddings` writes; none for None.

    Raises:
        DataError: Its kind is unknown.
    """
    if path is None:
        return []
    check_kind("--save-embeddings", path, _KINDS)
    return [path, path.with_suffix(".json")] if path.suffix == ".npy" else [path]


def write_embeddings(path: Path, rows: Tensor, names: Sequence[str]) -> None:
    """Write embeddings in the order of the images.

    ``.npy`` holds float32, (N, D), and ``images`` lies in a ``.json`` of the same stem; ``.safetensors`` holds a tensor
    ``embeddings`` and ``images`` as JSON in its metadata; ``.parquet`` has a column ``image`` and a column
    ``embedding``, a list of D float32 numbers.

    Args:
        path: The file; it is replaced.
        rows: Embeddings, float32, (N, D), on the CPU.
        names: Names of the images, N.
    """
    if path.suffix == ".npy":
        text = json.dumps({"images": list(names), "features": rows.shape[1]}, ensure_ascii=True) + "\n"
        with replaced_file(path.with_suffix(".json")) as fresh:
            fresh.write_text(text, encoding="utf-8")
    with replaced_file(path) as fresh:
        if path.suffix == ".npy":
            with fresh.open("wb") as file:
                np.save(file, rows.numpy())
        elif path.suffix == ".safetensors":
            save_file({"embeddings": rows.contiguous()}, fresh, {"images": json.dumps(list(names))})
        else:
            write_parquet(fresh, names, {"embedding": rows})
