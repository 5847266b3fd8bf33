"""Parts of a recipe whose keys depend on registered methods: pydantic fields that use a registry.

``ByName`` is a union discriminated by one key, such as ``method``. ``WithKeys`` is a mapping with one optional key for
each method, such as a phase with its remedies. Both use the registry when they validate, so methods that are registered
later are included.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, GetJsonSchemaHandler, ValidationError, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from ofqctl.errors import closest
from ofqctl.registry import Frozen, Method, Registry


class _Composed(BaseModel):
    """A class created at run time, which no module contains; pickle creates it again."""

    made: ClassVar[tuple[Callable[..., type[BaseModel]], tuple[Any, ...]]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, type(self).made, self.__getstate__()


def _blank(make: Callable[..., type[BaseModel]], arguments: tuple[Any, ...]) -> BaseModel:
    model = make(*arguments)
    return model.__new__(model)


@dataclass(frozen=True)
class _Dispatching(ABC):
    """A field annotation that validates with a class that is chosen or composed at run time."""

    registry: Registry[Any]

    @abstractmethod
    def model_of(self, base: type[BaseModel], values: Any) -> type[BaseModel]:
        """The class for ``values``; ``base`` if they do not determine one."""

    def validate(self, base: type[BaseModel], values: Any) -> BaseModel:
        """Validate ``values`` with the class for them."""
        if isinstance(values, base) and type(values) is not base:
            return values
        given = values.model_dump(exclude_unset=True) if isinstance(values, base) else values
        return self.model_of(base, given).model_validate(given)

    def __get_pydantic_core_schema__(self, source: type[BaseModel], _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda values: self.validate(source, values),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value, info: value.model_dump(mode=info.mode), info_arg=True
            ),
            metadata={"base": source},
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The fields of the base class; methods, which other packages add to, have more."""
        described = handler(schema["metadata"]["base"].__pydantic_core_schema__)
        handler.resolve_ref_schema(described)["additionalProperties"] = True
        return described


@dataclass(frozen=True)
class ByName(_Dispatching):
    """One of the registered methods, chosen by the value of ``key``; without it, the default of the base class.

    Attributes:
        registry: Registry of the methods.
        key: Name of the field that contains the method's name; a field of the base class.
        role: Role that the method is used in.
    """

    key: str = "method"
    role: str = ""

    def model_of(self, base: type[BaseModel], values: Any) -> type[BaseModel]:
        """A class with the fields of ``base`` and the settings of the method that ``values`` name."""
        if not isinstance(values, Mapping):
            return base
        field = base.model_fields[self.key]
        methods = self.registry.methods(self.role)
        if self.key not in values and field.is_required():
            other = next((key for key, value in values.items() if isinstance(value, str) and value in methods), None)
            hint = f"did you mean '{self.key}' in place of '{other}'?" if other else f"it names a {self.registry.noun}"
            raise _fault(base, self.key, f"is missing; {hint}", values)
        name = values.get(self.key, field.default)
        if not isinstance(name, str) or name not in methods:
            match = closest(str(name), methods)
            hint = f"did you mean '{match}'?" if match else f"allowed are {', '.join(methods)}"
            raise _fault(base, self.key, f"'{name}' is unknown; {hint}", name)
        return self._composed(base, methods[name])

    def _composed(self, base: type[BaseModel], method: Method[Any]) -> type[BaseModel]:
        return _compose(base, method.settings_in(self.role), self.key, method.name, tuple(method.traits))


@cache
def _compose(
    base: type[BaseModel], settings: type[Frozen], key: str, name: str, traits: tuple[str, ...]
) -> type[BaseModel]:
    named: Any = Literal[name]
    fields: dict[str, Any] = {key: (named, name)}
    bases: Any = (settings, base, _Composed) if settings is not Frozen else (base, _Composed)
    model: type[_Composed] = create_model(
        f"{name}_{base.__name__}", __base__=bases, __cls_kwargs__={"extra": "forbid"}, **fields
    )
    model.made = _compose, (base, settings, key, name, traits)
    return model


@dataclass(frozen=True)
class WithKeys(_Dispatching):
    """The fields of the base class and one optional key for each registered method, with its settings."""

    def model_of(self, base: type[BaseModel], values: Any) -> type[BaseModel]:  # noqa: ARG002
        """The class, which is the same for all values."""
        return _extend(base, tuple((m.name, m.settings) for m in self.registry.methods().values()))


@cache
def _extend(base: type[BaseModel], keys: tuple[tuple[str, type[Frozen]], ...]) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (settings | None, None) for name, settings in keys}
    bases: Any = (base, _Composed)
    model: type[_Composed] = create_model(base.__name__, __base__=bases, **fields)
    model.made = _extend, (base, keys)
    return model


def _fault(base: type[BaseModel], key: str, message: str, seen: Any) -> ValidationError:
    error = PydanticCustomError("registered", "{message}", {"message": message})
    return ValidationError.from_exception_data(base.__name__, [InitErrorDetails(type=error, loc=(key,), input=seen)])


def keys_at(model: type[BaseModel], values: Any, location: tuple[int | str, ...]) -> list[str]:
    """The known keys at a location in ``values``.

    Args:
        model: Class of the whole recipe.
        values: Content of the recipe, as in YAML.
        location: Keys and positions that lead to the location.
    """
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            values = values[part] if isinstance(values, list | tuple) and part < len(values) else None
            continue
        found = _model_in(annotation, values)
        if found is None or part not in found.model_fields:
            return []
        field = found.model_fields[part]
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        values = values.get(part) if isinstance(values, Mapping) else None
    found = _model_in(annotation, values)
    return [] if found is None else list(found.model_fields)


def _model_in(annotation: Any, values: Any) -> type[BaseModel] | None:
    """The model class that describes ``values`` in an annotation such as ``Weights | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        dispatching = next((m for m in metadata if isinstance(m, _Dispatching)), None)
        if dispatching is not None:
            try:
                return dispatching.model_of(base, values)
            except ValidationError:
                return None
    return next((found for inner in get_args(annotation) if (found := _model_in(inner, values))), None)
