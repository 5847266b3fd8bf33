"""The Hugging Face hub: names of its repositories, whether it can be reached, and what its answers mean to a user.

Names are ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``. The client's own settings apply: ``HF_ENDPOINT``,
``HF_TOKEN`` or the token of ``hf auth login``, ``HF_HOME`` and ``HF_HUB_OFFLINE``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ofqctl.errors import ModelError, OfqctlError

CONNECT_SECONDS = 10.0
_PREFIXES = ("hf-hub:", "hf_hub:")
_OFFLINE = "offline: `local-dir:PATH`, or a timm name and `--no-pretrained` or `--checkpoint FILE`"


def hub_id(name: str) -> str | None:
    """``ORG/NAME`` or ``ORG/NAME@REVISION`` if ``name`` is that of a repository on the hub, else None."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return None if prefix is None else name.removeprefix(prefix) or None


def split_id(repository: str) -> tuple[str, str | None]:
    """``ORG/NAME``, and the revision or None."""
    name, _, revision = repository.partition("@")
    return name, revision or None


def repository_fault(name: str) -> str | None:
    """Why the hub allows no repository ``name``, or None if it does; one needs an owner, ``ORG/NAME``."""
    if name.count("/") != 1:
        return "not the name of a repository, which is ORG/NAME"
    try:
        validate_repo_id(name)
    except HFValidationError as fault:
        return _first_line(fault)
    return None


@contextmanager
def asking(where: str, failure: str, error: type[OfqctlError] = ModelError, offline: str = _OFFLINE) -> Iterator[None]:
    """Turn what the client raises on answers of the hub, and on none, into an error that starts with ``where``.

    Args:
        where: What the hub is asked for.
        failure: What did not happen, such as ``the weights could not be downloaded``.
        error: Class of the error to raise.
        offline: What helps if the hub cannot be reached.
    """
    try:
        yield
    except GatedRepoError as fault:
        hint = "ask for access on its page, then `hf auth login`"
        raise error(f"{where}: {failure}: its owner has not granted access", hint=hint) from fault
    except RevisionNotFoundError as fault:
        raise error(f"{where}: the repository has no such revision", hint="a branch, a tag or a commit") from fault
    except RepositoryNotFoundError as fault:
        hint = "check the id; a private or gated model needs `hf auth login`"
        raise error(f"{where}: not on the Hugging Face hub, or not accessible", hint=hint) from fault
    except HFValidationError as fault:
        raise error(
            f"{where}: not on the Hugging Face hub, which allows no such name: {_first_line(fault)}",
            hint="repositories are named hf-hub:ORG/NAME",
        ) from fault
    except _connection_errors() as fault:
        status = fault.response.status_code if isinstance(fault, HfHubHTTPError) else None
        refused = status in (401, 403)
        raise error(
            f"{where}: {failure}: {_said(fault)}",
            hint="`hf auth login`, or HF_TOKEN, with a token that may do this" if refused else offline,
        ) from fault


@contextmanager
def downloading(where: str, what: str = "the weights") -> Iterator[None]:
    """Turn every error in the download of ``what`` into a ModelError whose message starts with ``where``."""
    with asking(where, f"{what} could not be downloaded"):
        yield


def check_reachable(repository: str) -> None:
    """Check once that the hub has ``repository``, unless some of it is in the cache.

    Otherwise the client would retry a failed download for most of a minute for each file name that timm tries.
    """
    name, revision = split_id(repository)
    try:
        snapshot_download(name, revision=revision, allow_patterns=["config.json"], local_files_only=True)
    except LocalEntryNotFoundError:
        HfApi().model_info(name, revision=revision, timeout=CONNECT_SECONDS)


def _connection_errors() -> tuple[type[BaseException], ...]:
    """OSError, and the base error of the HTTP client that the hub's library has imported."""
    clients = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return OSError, *(client.HTTPError for client in clients if client)


def _said(error: BaseException) -> str:
    """What the hub answered, or why there is no answer."""
    if isinstance(error, HfHubHTTPError):
        return f"HTTP {error.response.status_code}: {error.server_message or _first_line(error)}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
