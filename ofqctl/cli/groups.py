"""Groups of options: each is one class, and a command takes a group as one parameter.

A group says what its options are called and mean, and makes of them what a job needs::

    @group("Model")
    class Architecture:
        num_classes: int | None = option("N", "Number of classes.")


    def command(name: FloatModel, architecture: Architecture) -> None: ...

`expanded` gives the parser the options in place of the group, and the command the group in place of the options.
"""

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import typer

_PANEL, _INFO = "_help_panel", "typer"

Group = TypeVar("Group")


def option(metavar: str, text: str, *names: str, default: Any = None, **limits: Any) -> Any:
    """A field of a group: an option with a value.

    Args:
        metavar: What stands for the value, such as ``N``.
        text: Help text.
        names: Names of the option; by default made from the field's.
        default: Value without the option.
        limits: ``min`` and ``max`` of a number.
    """
    return field(default=default, metadata={_INFO: typer.Option(default, *names, metavar=metavar, help=text, **limits)})


def flag(text: str, *names: str) -> Any:
    """A field of a group: an option without a value, false by default."""
    return field(default=False, metadata={_INFO: typer.Option(False, *names, help=text)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option, flag))
def group(panel: str) -> Callable[[type[Group]], type[Group]]:
    """Make a class a group of options; subclasses, which are groups too, have its options and their own.

    Args:
        panel: Heading of the options in a command's help.
    """

    def made(cls: type[Group]) -> type[Group]:
        setattr(cls, _PANEL, panel)
        return dataclass(frozen=True, kw_only=True)(cls)

    return made


def given(options: Any) -> list[str]:
    """The names of a group's options whose values are not the defaults."""
    chosen = (one for one in fields(options) if getattr(options, one.name) != one.default)
    return [_names(one)[0] for one in chosen]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as the parser needs it: in the place of each parameter that is a group stand the group's options.

    Raises:
        TypeError: Two options have one name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if hasattr(hint, _PANEL)}
    parameters = [own for parameter in _signature(command) for own in _expanded(parameter, groups)]
    names = [parameter.name for parameter in parameters]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__}: several groups have the options {', '.join(sorted(twice))}")

    @wraps(command)
    def run(**values: Any) -> None:
        built = {
            name: made(**{one.name: values.pop(one.name) for one in fields(made) if one.name in values})
            for name, made in groups.items()
        }
        command(**values, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _signature(command: Callable[..., None]) -> Iterator[inspect.Parameter]:
    for parameter in inspect.signature(command).parameters.values():
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _expanded(parameter: inspect.Parameter, groups: dict[str, Any]) -> Iterator[inspect.Parameter]:
    made = groups.get(parameter.name)
    if made is None:
        yield parameter
        return
    hints = get_type_hints(made)
    for one in fields(made):
        info = copy(one.metadata[_INFO])
        info.rich_help_panel = getattr(made, _PANEL)
        yield parameter.replace(name=one.name, annotation=hints[one.name], default=info)


def _names(one: Any) -> tuple[str, ...]:
    return one.metadata[_INFO].param_decls or (f"--{one.name.replace('_', '-')}",)
