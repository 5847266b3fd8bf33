"""Files that say of each image what a model made of it, so that models can be compared image by image."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ofqctl.data import ImageLoader
from ofqctl.files import replaced_file
from ofqctl.jobs.image_rows import Columns, check_kind, write_csv, write_parquet
from ofqctl.training import Processes

_KINDS = {".csv": write_csv, ".parquet": write_parquet}


def check_predictions(path: Path | None) -> None:
    """Check that the kind of a file of predictions is known.

    Raises:
        DataError: It is not.
    """
    if path is not None:
        check_kind("--save-predictions", path, tuple(_KINDS))


class SavedPredictions:
    """Passes the batches of a loader on unchanged, and writes rows of their images, whose names it remembers.

    Args:
        path: A ``.csv`` or ``.parquet`` file, which is replaced; None if nothing is written.
        loader: Loader of this process's share.
    """

    def __init__(self, path: Path | None, loader: ImageLoader) -> None:
        self._path, self._loader = path, loader
        self._names: list[str] = []
        self._batches: list[int] = []  # of each image, the number of its batch among those of all processes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in self._loader.numbered():
            if self._path is not None:
                self._names += batch.names
                self._batches += [number] * len(batch.names)
            yield batch.images, batch.labels

    def write(self, columns: Columns, processes: Processes) -> None:
        """Write the rows of all images, in the order in which one process reads them; the first process does.

        Args:
            columns: Values of the images of all processes, in the order of ranks.
            processes: All processes; each calls this.
        """
        shares = processes.gather((self._names, self._batches))
        if self._path is None or not processes.first:
            return
        names = [name for own, _ in shares for name in own]
        order = torch.tensor([number for _, own in shares for number in own]).argsort(stable=True)
        ordered = {column: values[order] for column, values in columns.items()}
        with replaced_file(self._path) as fresh:
            _KINDS[self._path.suffix](fresh, [names[index] for index in order.tolist()], ordered)
