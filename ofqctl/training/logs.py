"""Log the figures of a training to TensorBoard and Weights & Biases, through their packages."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from ofqctl.errors import PackageError
from ofqctl.packages import missing

LogName = Literal["tensorboard", "wandb"]
Add = Callable[[int, Mapping[str, float]], None]

_FIGURES = (
    "loss",
    "train_top1",
    "lr",
    "images_per_second",
    "oscillating",
    "flips_per_step",
    "moved",
    "signs_moved",
    "magnitudes_moved",
    "val_top1",
    "val_loss",
    "val_cosine",
    "val_knn",
    "val_recall1",
)


class Logs:
    """Passes figures of optimizer steps and epochs to every log; a log that fails is dropped with a warning.

    Args:
        logs: For each log by name, a function that takes a step and its figures, and one that closes the log.
    """

    def __init__(self, logs: Mapping[str, tuple[Add, Callable[[], None]]]) -> None:
        self._logs = dict(logs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, log in self._logs.items():
            _tried(name, log[1])

    def add(self, row: Mapping[str, Any]) -> None:
        """Log the figures of a step or an epoch, under the names of ``summary.csv``."""
        figures = {name: float(row[name]) for name in _FIGURES if name in row}
        for name, (add, _) in list(self._logs.items()):
            if not _tried(name, add, row["step"], figures):
                del self._logs[name]


def check_logs(names: Sequence[LogName]) -> None:
    """Check before any work that these logs can be written.

    Raises:
        PackageError: A package is missing, or Weights & Biases has no account.
    """
    for name in names:
        if find_spec(name) is None:
            raise missing(name, f"--log {name}")
    if "wandb" in names:
        import wandb

        if wandb.setup().settings.mode == "online":
            try:
                wandb.login()
            except wandb.Error as error:
                raise _no_wandb(error) from error


def open_logs(names: Sequence[LogName], directory: Path, settings: Mapping[str, Any], step: int) -> Logs:
    """Open the logs of a run, or continue them.

    Args:
        names: Names of the logs.
        directory: The run directory; TensorBoard writes to ``logs`` in it, Weights & Biases to ``wandb``.
        settings: The request of the run, for Weights & Biases.
        step: Number of optimizer steps done; TensorBoard drops later entries.

    Raises:
        PackageError: Weights & Biases cannot be reached.
    """
    logs: dict[str, tuple[Add, Callable[[], None]]] = {}
    if "tensorboard" in names:
        logs["tensorboard"] = _tensorboard(directory, step)
    if "wandb" in names:
        if step == 0:  # else the log of an earlier training in this directory would be continued
            (directory / "wandb" / "wandb-resume.json").unlink(missing_ok=True)
        logs["wandb"] = _wandb(directory, settings)
    return Logs(logs)


def _tensorboard(directory: Path, step: int) -> tuple[Add, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(directory / "logs", purge_step=step + 1)

    def add(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return add, writer.close


def _wandb(directory: Path, settings: Mapping[str, Any]) -> tuple[Add, Callable[[], None]]:
    import wandb

    try:
        run = wandb.init(
            project="ofqctl",
            name=directory.name,
            dir=str(directory),
            config=dict(settings),
            resume="auto",  # continues an interrupted run in this directory
            settings=wandb.Settings(console="off"),
        )
    except wandb.Error as error:
        raise _no_wandb(error) from error
    return lambda step, figures: run.log(dict(figures), step=step), run.finish


def _no_wandb(error: Exception) -> PackageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PackageError(
        f"--log wandb: Weights & Biases cannot be used: {reason}",
        hint="`wandb login` sets the account; WANDB_MODE=offline logs only to the run directory",
    )


def _tried(name: str, call: Callable[..., None], *args: Any) -> bool:
    """Whether ``call`` succeeded; a failing log must not stop training."""
    try:
        call(*args)
    except Exception as error:  # noqa: BLE001
        warnings.warn(f"--log {name}: failed, training continues without it: {error}", stacklevel=2)
        return False
    return True
