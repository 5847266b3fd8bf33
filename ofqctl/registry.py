"""Registries of methods by name: quantizers, stages of post-training quantization, remedies and objective terms.

A method registers itself with one decorator, which takes its name and its settings. Methods of this package need no
list: when a registry is first used, it imports the modules of the subpackage that it belongs to. Other packages name
one of their modules under the entry point group ``ofqctl.methods``; a script registers its methods before it uses them.
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
    """Settings: immutable, and unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Method(Generic[T]):
    """One entry of a registry.

    Attributes:
        name: Its name in recipes.
        target: The class or function that does the work.
        settings: The class of its settings in a recipe.
        by_role: Other settings classes for some roles, such as ``activations``.
        roles: What it can be used for; empty if it can be used for everything.
        traits: Properties that others need to know before the method is created.
    """

    name: str
    target: T
    settings: type[Frozen]
    by_role: Mapping[str, type[Frozen]] = field(default_factory=dict)
    roles: Collection[str] = ()
    traits: Collection[str] = ()

    def settings_in(self, role: str) -> type[Frozen]:
        """The settings class of the method in a role."""
        return self.by_role.get(role, self.settings)


class Registry(Generic[T]):
    """The methods of one kind.

    Args:
        noun: What a method of this kind is called in messages.
        package: The subpackage whose modules register the methods that come with ofqctl.
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
            name: Its name in recipes.
            settings: The class of its settings in a recipe.
            roles: What it can be used for; everything by default.
            traits: Its properties, by the names that the users of this registry look for.
            **by_role: Other settings classes for some roles.

        Raises:
            ValueError: The name is already registered.
        """

        def enter(target: R) -> R:
            known = self._methods.get(name)
            if known is not None and _origin(known.target) != _origin(target):
                raise ValueError(f"{self.noun} '{name}' is already registered by {_origin(known.target)}")
            self._methods[name] = Method(name, target, settings, by_role, roles, traits)  # type: ignore[arg-type]
            return target

        return enter

    def methods(self, role: str = "") -> dict[str, Method[T]]:
        """All registered methods by name, or those that can be used in ``role``."""
        self._load()
        usable = (m for m in self._methods.values() if not (role and m.roles) or role in m.roles)
        return {method.name: method for method in sorted(usable, key=lambda method: method.name)}

    def __getitem__(self, name: str) -> Method[T]:
        """The method with this name.

        Raises:
            KeyError: There is no such method.
        """
        self._load()
        return self._methods[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._methods

    def with_trait(self, trait: str) -> list[str]:
        """Names of the methods with the property ``trait``."""
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
    """Import the methods of other packages, once.

    Raises:
        PackageError: A package cannot be imported.
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
                hint="repair or uninstall the package that provides them",
            ) from error


def _origin(target: object) -> str:
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', type(target).__qualname__)}"
