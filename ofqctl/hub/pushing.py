"""Send a run to the hub: one commit that has all of it, in a repository that is new, empty or a run's already."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ofqctl.artifact import ForeignConfigError
from ofqctl.artifact.config import CONFIG, parse_config
from ofqctl.documents import read_text
from ofqctl.errors import ArtifactError
from ofqctl.files import RUN_FILES
from ofqctl.models.hub import CONNECT_SECONDS, asking, hub_id, repository_fault

CARD = "README.md"
_BLANK = (".gitattributes",)  # what the hub puts into a new repository
_CONFLICTS = (409, 412)
_OFFLINE = "check HF_HUB_OFFLINE, HF_ENDPOINT and the network; `--dry-run` shows the card without them"


@dataclass(frozen=True)
class Pushed:
    """What came of it.

    Attributes:
        url: Address of the repository.
        commit: The commit.
        private: Whether only its owner can see the repository.
        created: Whether the repository is new.
        removed: Names of an earlier run's files that are gone.
    """

    url: str
    commit: str
    private: bool
    created: bool
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """The repository ahead of the push: its last commit, None if there is none, and the names of its files."""

    private: bool
    commit: str | None = None
    files: tuple[str, ...] = ()


def check_repository(name: str) -> str:
    """``ORG/NAME`` from that or ``hf-hub:ORG/NAME``.

    Raises:
        ArtifactError: The hub allows no such name.
    """
    repository = hub_id(name) or name
    fault = repository_fault(repository)
    if fault is not None:
        raise ArtifactError(f"{name}: {fault}", hint="`ofqctl push RUN ORG/NAME`; ORG is your name there or a group's")
    return repository


def push(files: Mapping[str, Path], card: str, repository: str, *, private: bool, overwrite: bool) -> Pushed:
    """Send files and a card to the hub, as one commit.

    Args:
        files: Paths by name in the repository.
        card: Text of the card.
        repository: ``ORG/NAME``.
        private: Whether a new repository is private.
        overwrite: Whether the run in an existing repository is replaced.

    Raises:
        ArtifactError: The repository holds something, and ``overwrite`` is not set or it is no run; it is public and
            ``private`` is set; the hub cannot be reached or refuses.
    """
    api, where = HfApi(library_name="ofqctl"), f"hf-hub:{repository}"
    with _sending(where):
        found = _look(api, repository)
        if found is None:
            api.create_repo(repository, private=private or None)
        else:
            _check(api, found, repository, private=private, overwrite=overwrite)
        before = found or _look(api, repository) or _Found(private)
        stale = [name for name in before.files if _of_a_run(name) and name not in files]
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
                CommitOperationAdd(CARD, card.encode()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="A run of ofqctl",
            parent_commit=before.commit,
        )
    return Pushed(f"{api.endpoint}/{repository}", commit.oid, before.private, found is None, tuple(stale))


def _look(api: HfApi, repository: str) -> _Found | None:
    """The repository, or None if there is none, or none that this user may see."""
    try:
        info = api.model_info(repository, timeout=CONNECT_SECONDS)
    except RepositoryNotFoundError:
        return None
    return _Found(bool(info.private), info.sha, tuple(file.rfilename for file in info.siblings or ()))


def _check(api: HfApi, found: _Found, repository: str, *, private: bool, overwrite: bool) -> None:
    """Check that the repository may be written.

    Raises:
        ArtifactError: It may not.
    """
    where = f"hf-hub:{repository}"
    if private and not found.private:
        raise ArtifactError(
            f"{where}: exists and is public, and --private makes only new repositories private",
            hint="change it on its page, or push under another name",
        )
    if not set(found.files) - set(_BLANK):
        return
    run = _is_run(api, found, repository)
    if not overwrite or not run:
        what = "a run" if run else "something that ofqctl did not write"
        hint = "--overwrite replaces it by a new commit" if run else "push under another name"
        raise ArtifactError(f"{where}: exists already and holds {what}", hint=hint)


def _is_run(api: HfApi, found: _Found, repository: str) -> bool:
    """Whether a run lies in the repository, be it one of a future version or a damaged one."""
    if CONFIG not in found.files:
        return False
    text = read_text(Path(api.hf_hub_download(repository, CONFIG, revision=found.commit)))
    try:
        parse_config(text, f"hf-hub:{repository}/{CONFIG}")
    except ForeignConfigError:
        return False
    except ArtifactError:
        return True
    return True


def _of_a_run(name: str) -> bool:
    """Whether the file of an earlier run goes if the new one has none of that name."""
    return name in RUN_FILES or (name.endswith(".onnx") and "/" not in name)


@contextmanager
def _sending(where: str) -> Iterator[None]:
    """Turn what the client raises into an error of one sentence."""
    with asking(where, "nothing could be pushed", ArtifactError, _OFFLINE):
        try:
            yield
        except HfHubHTTPError as fault:
            if fault.response.status_code not in _CONFLICTS:
                raise
            raise ArtifactError(f"{where}: somebody else has written it meanwhile", hint="push again") from fault
        except (ValueError, RuntimeError) as fault:  # the client's own, of answers that it cannot use
            raise ArtifactError(f"{where}: nothing could be pushed: {' '.join(str(fault).split())}") from fault
