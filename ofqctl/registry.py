"""Methods by name: how quantizers, stages of post-training quantization, remedies and objective terms are found.

A method registers itself with one decorator that carries its name and its settings. Methods of this package need no
list: the modules of the package that a registry belongs to are imported when it is first asked. Other packages name a
module of theirs under the entry point group ``ofqctl.methods``, and a script just registers before it goes on.
"""

import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from ofqctl.errors import PackageError

ENTRY_POINTS = "ofqctl.methods"

T = TypeVar("T")
R = TypeVar("R")


class Frozen(BaseModel):
    """Settings: never changed after they were made, and no other keys than their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Method(Generic[T]):
    """One entry of a registry.

    Attributes:
        name: As recipes call it.
        target: The class or function that does the work.
        settings: What a recipe may say about it.
        by_role: Other settings where it is used in some role, such as ``activations``.
        roles: What it can be used for; empty for everything.
        traits: Facts about it that others need to know before it is made.
    """

    name: str
    target: T
    settings: type[Frozen]
    by_role: Mapping[str, type[Frozen]] = field(default_factory=dict)
    roles: Collection[str] = ()
    traits: Collection[str] = ()

    def settings_in(self, role: str) -> type[Frozen]:
        """The settings of the method in a role."""
        return self.by_role.get(role, self.settings)


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        noun: What to call one of them in a message.
        package: Whose modules register the methods that come with ofqctl.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun = noun
        self._package = package
        self._methods: dict[str, Method[T]] = {}
        self._complete = False

    def register(
        self,
        name: str,
        settings: type[Frozen] = Frozen,
        *,
        roles: Collection[str] = (),
        traits: Collection[str] = (),
        **by_role: type[Frozen],
    ) -> Callable[[R], R]:
        """Decorate the class or function that does the work.

        Args:
            name: As recipes call it.
            settings: What a recipe may say about it.
            roles: What it can be used for; everything by default.
            traits: Facts about it, by the names that the users of this registry look for.
            **by_role: Other settings in some role.

        Raises:
            ValueError: Something else has that name.
        """

        def enter(target: R) -> R:
            known = self._methods.get(name)
            if known is not None and _origin(known.target) != _origin(target):
                raise ValueError(f"{self.noun} '{name}' is registered by {_origin(known.target)} already")
            self._methods[name] = Method(name, target, settings, by_role, roles, traits)  # type: ignore[arg-type]
            return target

        return enter

    def methods(self, role: str = "") -> dict[str, Method[T]]:
        """Everything registered by name, or what can be used in ``role``."""
        self._load()
        usable = (m for m in self._methods.values() if not (role and m.roles) or role in m.roles)
        return {method.name: method for method in sorted(usable, key=lambda method: method.name)}

    def __getitem__(self, name: str) -> Method[T]:
        """The method of that name.

        Raises:
            KeyError: There is none.
        """
        self._load()
        return self._methods[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._methods

    def with_trait(self, trait: str) -> list[str]:
        """Names of the methods of which ``trait`` is true."""
        return [name for name, method in self.methods().items() if trait in method.traits]

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True
        package = import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            import_module(module.name)
        load_plugins()


_plugins: set[str] = set()


def load_plugins() -> None:
    """Import what other packages offer, once.

    Raises:
        PackageError: One of them cannot be imported.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.value in _plugins:
            continue
        _plugins.add(entry.value)
        try:
            entry.load()
        except Exception as error:
            raise PackageError(
                f"methods of '{entry.name}' ({entry.value}): cannot be imported: {type(error).__name__}: {error}",
                hint="repair or uninstall the package that offers them",
            ) from error


def _origin(target: object) -> str:
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', type(target).__qualname__)}"
