"""Imports that libraries make at once and rarely need: made when they are needed, so that commands start sooner.

While such a library is loaded, a stand-in is found in place of what it imports; afterwards the real one is found again,
by everyone. The library keeps the stand-in, which imports the real one at its first use and hands everything on to it:
nothing is replaced, only later.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these load much that light commands do without
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

Postponing = Callable[[], AbstractContextManager[None]]


def postpone() -> None:
    """From now on, postpone what libraries import at once and rarely need."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds libraries as the other finders do, and has them loaded while their imports are postponed."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> "ModuleSpec | None":
        postponing = _LIBRARIES.get(name)
        if postponing is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loading(spec.loader, postponing)  # type: ignore[assignment]  # only for this one load
        return spec


class _Loading:
    """A loader that postpones imports of what it loads, and leaves the library's own loader in its place."""

    def __init__(self, own: "Loader", postponing: Postponing) -> None:
        self._own, self._postponing = own, postponing

    def create_module(self, spec: "ModuleSpec") -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._own
        with self._postponing():
            self._own.exec_module(module)


@contextmanager
def _without_the_compiler() -> Iterator[None]:
    """Deterministic RoIAlign asks if torch can compile for a device; its compiler takes as long to load as torch."""
    with _standing_in("torch._dynamo.utils", "is_compile_supported"):
        yield


@contextmanager
def _without_weights_and_biases() -> Iterator[None]:
    """Summaries of training can go to Weights & Biases, where it is installed."""
    from importlib.util import find_spec

    if find_spec("wandb") is None:
        yield
        return
    with _standing_in("wandb"):
        yield


@contextmanager
def _disabling_later() -> Iterator[None]:
    """Some methods are marked as not to be compiled; the mark takes the compiler, but only where they are called."""
    from torch import compiler

    from ofqctl.internals import disabled_when_called

    at_once = compiler.disable
    compiler.disable = disabled_when_called  # type: ignore[assignment]
    try:
        yield
    finally:
        compiler.disable = at_once


_LIBRARIES: dict[str, Postponing] = {
    "torchvision": _without_the_compiler,
    "timm.layers.typing": _disabling_later,
    "timm.utils.summary": _without_weights_and_biases,
}


@contextmanager
def _standing_in(name: str, *functions: str) -> Iterator[None]:
    """Have a stand-in for a module found, with those of its functions that are imported by name."""
    if name in sys.modules:
        yield
        return
    stand_in = _StandIn(name)
    for function in functions:
        setattr(stand_in, function, _handed_on(name, function))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module that is imported when the first of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by whoever looks through all modules
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _handed_on(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(_real(module), function)(*args, **kwargs)

    return call


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return import_module(name)
