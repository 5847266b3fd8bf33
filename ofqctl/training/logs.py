"""Where the figures of a training go beside its own tables: TensorBoard, Weights & Biases, through their packages."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from ofqctl.errors import PackageError

LogName = Literal["tensorboard", "wandb"]
Add = Callable[[int, Mapping[str, float]], None]

_FIGURES = (
    "loss",
    "train_top1",
    "lr",
    "images_per_second",
    "oscillating",
    "flips_per_step",
    "val_top1",
    "val_loss",
)


class Logs:
    """Gives the figures of steps and epochs to every log; one that fails is warned of and left alone from then on.

    Args:
        logs: By name, what takes a step and its figures, and what ends it.
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
    """Make sure, before any work is done, that these logs can be kept.

    Raises:
        PackageError: A package is missing, or Weights & Biases knows no account.
    """
    for name in names:
        if find_spec(name) is None:
            raise PackageError(
                f"--log {name}: the package {name} is not installed", hint="pip install 'ofqctl[logging]'"
            )
    if "wandb" in names:
        import wandb

        if wandb.setup().settings.mode == "online":
            try:
                wandb.login()
            except wandb.Error as error:
                raise _no_wandb(error) from error


def open_logs(names: Sequence[LogName], directory: Path, settings: Mapping[str, Any], step: int) -> Logs:
    """Start the logs of a run, or go on with them.

    Args:
        names: Which ones.
        directory: The run's; TensorBoard writes to ``logs`` in it, Weights & Biases to ``wandb``.
        settings: What the run was asked to do, for Weights & Biases.
        step: Optimizer steps that are done; TensorBoard forgets those beyond.

    Raises:
        PackageError: Weights & Biases cannot be reached.
    """
    logs: dict[str, tuple[Add, Callable[[], None]]] = {}
    if "tensorboard" in names:
        logs["tensorboard"] = _tensorboard(directory, step)
    if "wandb" in names:
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
            resume="auto",  # an interrupted run in this directory goes on
            settings=wandb.Settings(console="off"),
        )
    except wandb.Error as error:
        raise _no_wandb(error) from error
    return lambda step, figures: run.log(dict(figures), step=step), run.finish


def _no_wandb(error: Exception) -> PackageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PackageError(
        f"--log wandb: Weights & Biases cannot be used: {reason}",
        hint="`wandb login` names the account; WANDB_MODE=offline logs to the run directory alone",
    )


def _tried(name: str, call: Callable[..., None], *args: Any) -> bool:
    """Whether ``call`` worked; training is worth more than its log."""
    try:
        call(*args)
    except Exception as error:  # noqa: BLE001
        warnings.warn(f"--log {name}: failed, training goes on without it: {error}", stacklevel=2)
        return False
    return True
