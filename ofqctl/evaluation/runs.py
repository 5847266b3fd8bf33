"""Which run a name stands for: a path, or a repository of the hub that holds one."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ofqctl.artifact import WEIGHTS, Download, ForeignConfigError, Run, RunConfig, is_run, load_run, read_config
from ofqctl.errors import ArtifactError
from ofqctl.hub.pulling import pull
from ofqctl.models.hub import hub_id


@dataclass(frozen=True)
class FoundRun:
    """A run that was found, before it is read.

    Attributes:
        path: Its directory, or the weights file in that.
        download: What was downloaded, for a run on the hub.
    """

    path: Path
    download: Download | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.path) if self.download is None else self.download.name

    @property
    def directory(self) -> Path:
        """Its directory."""
        return self.path.parent if self.path.is_file() else self.path

    def config(self) -> RunConfig:
        """What it says about itself.

        Raises:
            ArtifactError: That is damaged.
        """
        return read_config(self.directory)

    def load(self) -> Run:
        """Read it.

        Raises:
            ArtifactError: It is damaged.
        """
        return load_run(self.path, self.download)


def find_run(name: str | Path, also: Collection[str] = ()) -> FoundRun | None:
    """The run that a name stands for, downloaded if it is on the hub; None if the name stands for anything else.

    Args:
        name: A path, ``local-dir:PATH``, or ``hf-hub:ORG/NAME[@REVISION]``.
        also: Names of further files to download, which not every run has.

    Raises:
        ModelError: The hub has no such repository, or cannot be reached.
        ArtifactError: Its ``config.json`` is damaged.
    """
    if hub_id(str(name)) is not None:
        pulled = pull(str(name), also)
        return None if pulled is None else FoundRun(pulled.directory, pulled.download)
    path = Path(str(name).removeprefix("local-dir:"))
    return FoundRun(path) if holds_run(path) else None


def open_run(name: str | Path, also: Collection[str] = ()) -> Run:
    """Open a run: its directory, the ``model.safetensors`` in that, a self-describing safetensors file, or the hub's.

    Args:
        name: A path, or ``hf-hub:ORG/NAME[@REVISION]``.
        also: Names of further files to download, which not every run has.

    Raises:
        ModelError: The hub has no such repository, or cannot be reached.
        ArtifactError: It is another kind of file, or the run is missing or damaged.
    """
    if hub_id(str(name)) is not None:
        return hub_run(name, also).load()
    path = Path(name)
    if path.is_file() and path.suffix != ".safetensors":
        raise ArtifactError(
            f"{path}: not the {WEIGHTS} of a run directory",
            hint="float weights go to `--checkpoint FILE`, an OFQ .pth.tar to `ofqctl import`",
        )
    return load_run(path)


def hub_run(name: str | Path, also: Collection[str] = ()) -> FoundRun:
    """The run in a repository of the hub; arguments as for :func:`find_run`.

    Raises:
        ModelError: The hub has no such repository, or cannot be reached.
        ArtifactError: The repository holds no run, or the run's ``config.json`` is damaged.
    """
    found = find_run(name, also)
    if found is None:
        raise ArtifactError(
            f"{name}: the repository holds no run of ofqctl",
            hint="`ofqctl push RUN ORG/NAME` makes one; `ofqctl evaluate` takes float models of timm, too",
        )
    return found


def holds_run(path: Path) -> bool:
    """Whether ``path`` is a run directory that this program wrote and can read, or the weights file of one."""
    if not is_run(path):
        return False
    try:
        read_config(path.parent if path.is_file() else path)
    except ForeignConfigError:
        return False
    return True
