"""Packages that some commands need and that do not come with this one: what for, and how to install them."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from ofqctl.errors import PackageError


@dataclass(frozen=True)
class OptionalPackage:
    """A package that does not come with this one.

    Attributes:
        purpose: Commands and options that need it.
        install: The command that installs it.
    """

    purpose: str
    install: str


OPTIONAL = {
    "openvino": OptionalPackage("export --target openvino, bench infer --runtime openvino", "pip install openvino"),
    "nncf": OptionalPackage("bench infer --against nncf", "pip install nncf"),
    "tensorboard": OptionalPackage("train --log tensorboard", "pip install 'ofqctl[logging]'"),
    "wandb": OptionalPackage("train --log wandb", "pip install 'ofqctl[logging]'"),
}


def missing(name: str, asked: str | None = None) -> PackageError:
    """The error that an optional package is not installed.

    Args:
        name: One of `OPTIONAL`.
        asked: What needs it, if that is known.
    """
    return PackageError(
        f"{asked + ': ' if asked else ''}the package {name} is not installed", hint=OPTIONAL[name].install
    )


def version_of(name: str) -> str | None:
    """The version of an installed package, found without importing it; None if it is not installed."""
    try:
        return _version(name)
    except PackageNotFoundError:
        return None
