"""Quantize any timm vision transformer to 2-8 bits, measure it, and store it at its real bit-width."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ofqctl import environment

if TYPE_CHECKING:
    from ofqctl.api.attention import register_attention
    from ofqctl.api.embedding import evaluate_embeddings
    from ofqctl.api.evaluating import evaluate
    from ofqctl.api.exporting import export
    from ofqctl.api.loading import load
    from ofqctl.api.looking import analyze_oscillation, inspect
    from ofqctl.api.quantizing import QuantizedModel, quantize
    from ofqctl.api.training import train
    from ofqctl.errors import OfqctlError
    from ofqctl.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "OfqctlError",
    "QuantizedModel",
    "Recipe",
    "analyze_oscillation",
    "evaluate",
    "evaluate_embeddings",
    "export",
    "inspect",
    "load",
    "quantize",
    "register_attention",
    "train",
]

_PLACES = {
    "OfqctlError": "errors",
    "QuantizedModel": "api.quantizing",
    "Recipe": "recipe",
    "analyze_oscillation": "api.looking",
    "evaluate": "api.evaluating",
    "evaluate_embeddings": "api.embedding",
    "export": "api.exporting",
    "inspect": "api.looking",
    "load": "api.loading",
    "quantize": "api.quantizing",
    "register_attention": "api.attention",
    "train": "api.training",
}

environment.prepare()


class FunctionAndPackage(ModuleType):
    """The class of a package whose name a function has as well: ``ofqctl.export(...)`` is the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return _function(self.__name__.rpartition(".")[2])(*args, **kwargs)


def __getattr__(name: str) -> Any:
    """Load what is asked for: torch and timm take seconds, the package itself none."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ofqctl' has no attribute '{name}'")
    return _function(name)


def _function(name: str) -> Any:
    return getattr(import_module(f"ofqctl.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
