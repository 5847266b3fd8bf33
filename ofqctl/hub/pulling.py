"""Bring a run back from the hub: its files come into the client's cache, and are checked there as those of any run."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ofqctl.artifact import Download, ForeignConfigError
from ofqctl.artifact.config import CONFIG, parse_config
from ofqctl.artifact.results import RESULTS
from ofqctl.documents import read_text
from ofqctl.errors import ArtifactError
from ofqctl.files import LATENTS, TRACKER_FILE, TRAINING_STATE, WEIGHTS
from ofqctl.models.hub import check_reachable, downloading, hub_id, split_id

TRAINING = (TRAINING_STATE, LATENTS, TRACKER_FILE, "summary.csv")
_BESIDES = ("recipe.yaml", RESULTS)  # a run without them is a run


@dataclass(frozen=True)
class Pulled:
    """A run of the hub that lies in the cache.

    Attributes:
        directory: The run directory; it is the cache's, nothing is written into it.
        download: What it is.
    """

    directory: Path
    download: Download


def pull(name: str, also: Collection[str] = ()) -> Pulled | None:
    """Download a run, or what of it is not in the cache.

    If the hub cannot be reached, and with ``HF_HUB_OFFLINE=1``, what was downloaded earlier is used.

    Args:
        name: ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``.
        also: Names of files to download too, if the repository has them.

    Returns:
        The run, or None if ``name`` is not that of a repository, or the repository holds no run but something else.

    Raises:
        ModelError: The hub has no such repository, cannot be reached, or breaks off.
        ArtifactError: The run's description is damaged, of a future version, or was changed after it was written.
    """
    repository = hub_id(name)
    if repository is None:
        return None
    where = f"hf-hub:{repository}"
    with downloading(where, f"its {CONFIG}"):
        check_reachable(repository)
        config = _file(repository, CONFIG)
    if config is None or not _is_run(config, repository):
        return None
    download = Download(*split_id(repository), commit=config.parent.name)
    pinned = download.exact_name.removeprefix("hf-hub:")
    with downloading(where, "its files"):
        if _file(pinned, WEIGHTS) is None:
            raise ArtifactError(f"{where}: holds no {WEIGHTS}", hint="`ofqctl push RUN ORG/NAME --overwrite` renews it")
    for other in (*_BESIDES, *also):
        with downloading(where, f"its {other}"):
            _file(pinned, other)
    return Pulled(config.parent, download)


def _file(repository: str, name: str) -> Path | None:
    """The path of a file of a repository in the cache; None if it has no such file."""
    identifier, revision = split_id(repository)
    known = try_to_load_from_cache(identifier, name, revision=revision) if revision else None
    if known is not None and not isinstance(known, str):  # known not to exist in a commit, in which nothing changes
        return None
    try:
        return Path(HfApi(library_name="ofqctl").hf_hub_download(identifier, name, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _is_run(config: Path, repository: str) -> bool:
    """Whether a ``config.json`` is that of a run.

    Raises:
        ArtifactError: It is, but cannot be used.
    """
    where, text = f"hf-hub:{repository}/{CONFIG}", read_text(config)
    try:
        parse_config(text, where)
    except ForeignConfigError:
        return False
    except ArtifactError as error:
        parse_config(text, where, as_it_is=True)  # what else is wrong with it is said as of any run
        identifier, revision = split_id(repository)
        fetch = f"hf download {identifier}{f' --revision {revision}' if revision else ''} --local-dir DIR"
        hint = f"`{fetch}`, then `ofqctl inspect DIR --accept-config` accepts it as it is now"
        raise ArtifactError(error.message, hint=hint) from error
    return True
