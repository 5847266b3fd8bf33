"""Turn exceptions of the `datasets` library and the hub's client into messages that a user can act on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from ofqctl.errors import DataError


@contextmanager
def data_errors(where: str) -> Iterator[None]:
    """Turn exceptions of `datasets` on missing, damaged or unusual data into a DataError.

    Progress bars are shown on a terminal only.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    quiet = not sys.stderr.isatty() and datasets.is_progress_bar_enabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    except (DatasetsError, OSError, http_error(), ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{where}: `datasets` cannot read it: {first_line(error.__cause__ or error)}",
            hint="a directory needs intact parquet files, a hub set a network or an earlier download",
        ) from error
    finally:
        if quiet:
            datasets.enable_progress_bars()


def http_error() -> type[Exception]:
    """The exception class of the hub's client, whichever HTTP library it uses."""
    from huggingface_hub import errors

    return cast("type[Exception]", errors.HTTPError)  # type: ignore[attr-defined]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
