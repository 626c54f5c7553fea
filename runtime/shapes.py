"""What can be told about a value or a schema from its type alone: fields, hints, immutability."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

_PLAIN = (type(None), bool, int, float, complex, str, bytes, decimal.Decimal, uuid.UUID)
_TIMES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
SCALARS: frozenset[type] = frozenset({*_PLAIN, *_TIMES})
_WRAPPERS = {typing.Annotated, typing.Required, typing.NotRequired, typing.Final, typing.ClassVar}
UNIONS = {typing.Union, types.UnionType}
_CONTAINERS = {list, set, frozenset, tuple, dict}


def is_pydantic(cls: type) -> bool:
    """Say whether ``cls`` is a Pydantic model; Pydantic is not imported for it."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def is_root_model(cls: Any) -> bool:
    """Say whether a Pydantic model is stored as its one value."""
    return bool(getattr(cls, "__pydantic_root_model__", False))


def _field_names(cls: Any) -> tuple[str, ...] | None:
    """Return the names of the fields of a class (dataclass, Struct, attrs, Pydantic, NamedTuple), or None."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__  # type: ignore[no-any-return]
    if is_pydantic(cls):
        return tuple(cls.model_fields)
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return tuple(attribute.name for attribute in attributes)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return tuple(cls._fields)
    return None


field_names: Callable[[Any], tuple[str, ...] | None] = lru_cache(maxsize=1024)(_field_names)


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of ``value``, each with the step that leads to it (``.name``, ``[3]``)."""
    names = field_names(type(value))
    if names is not None:
        for name in names:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
        for beside in ("__pydantic_extra__", "__pydantic_private__"):
            for name, part in (getattr(value, beside, None) or {}).items():
                yield f".{name}", part
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f".<key {_short(key)}>", key
            yield step(key), part
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"[{index}]", part


def step(key: Any) -> str:
    """Return the step of a path that leads to the value under ``key``."""
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{_short(key)}]"


def _short(key: Any) -> str:
    text = ascii(key) if isinstance(key, str | bytes | int | float) else type(key).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def unwrap(hint: Any) -> Any:
    """Return the type behind ``Annotated``, ``NotRequired``, ``NewType`` and type aliases."""
    while True:
        if typing.get_origin(hint) in _WRAPPERS:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def stored_names(cls: Any) -> dict[str, str]:
    """Return the names of the fields of a class, each with the name under which it is stored."""
    if issubclass(cls, msgspec.Struct):
        return dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    if is_pydantic(cls):
        return {name: _alias(field) or name for name, field in cls.model_fields.items()}
    return {name: name for name in field_names(cls) or ()}


def _alias(field: Any) -> str | None:
    """Return the one name under which a field of a model is both written and read; None if these are two."""
    written, read = field.serialization_alias or field.alias, field.validation_alias or field.alias
    return written if written == read else None


def field_hints(hint: Any) -> dict[str, Any] | None:
    """Return the hints of the fields by the names under which they are stored; None where there are none."""
    cls: Any = typing.get_origin(hint) or hint
    if not isinstance(cls, type):
        return None
    if typing.is_typeddict(cls):
        return typing.get_type_hints(cls, include_extras=True)
    if field_names(cls) is None:
        return None
    stored = stored_names(cls)
    if is_pydantic(cls):
        model: Any = cls
        return {under: model.model_fields[name].annotation for name, under in stored.items()}
    hints = typing.get_type_hints(cls, include_extras=True)
    known = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(hint), strict=False))
    return {under: known.get(hints.get(name, Any), hints.get(name, Any)) for name, under in stored.items()}


def is_exact(hint: Any) -> bool:
    """Say whether msgspec alone keeps the type of every value that fits ``hint``.

    It does not at a place that says ``Any`` or ``list`` alone: there a tuple would come back as a list.
    """
    return _exact(hint, set())


def _exact(hint: Any, seen: set[Any]) -> bool:
    hint = unwrap(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return all(_exact(part, seen) for part in arguments)
    if origin is typing.Literal or hint is None:
        return True
    if origin in _CONTAINERS:
        return all(part is Ellipsis or _exact(part, seen) for part in arguments)
    if not isinstance(origin or hint, type):
        return False
    if hint in SCALARS or hint is bytearray or issubclass(origin or hint, enum.Enum):
        return True
    if (origin or hint).__module__ == "numpy":
        return True
    if is_pydantic(origin or hint):
        return False
    if hint in seen:
        return True
    seen.add(hint)
    fields = field_hints(hint)
    return fields is not None and all(_exact(part, seen) for part in fields.values())


def part_hint(hint: Any, segment: str) -> Any:
    """Return the hint of the part of ``hint`` that ``segment`` names, Any where nothing is said.

    Raises:
        KeyError: a value of this type can't have such a part.
    """
    hint = unwrap(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return _part_of_union(arguments, segment)
    if hint is Any or hint is object or hint is None or isinstance(hint, typing.TypeVar):
        return Any
    fields = field_hints(hint)
    if fields is not None:
        if _is_row(origin or hint) and segment.isdecimal() and int(segment) < len(fields):
            return list(fields.values())[int(segment)]
        return _part_of_model(origin or hint, fields, segment) if is_pydantic(origin or hint) else fields[segment]
    cls = origin or hint
    if not isinstance(cls, type) or cls in SCALARS or issubclass(cls, enum.Enum | set | frozenset):
        raise KeyError(segment)
    if issubclass(cls, Mapping):
        return arguments[1] if len(arguments) == 2 else Any
    if not segment.isdecimal():
        raise KeyError(segment)
    if issubclass(cls, tuple) and arguments and arguments[-1] is not Ellipsis:
        if int(segment) >= len(arguments):
            raise KeyError(segment)
        return arguments[int(segment)]
    return arguments[0] if arguments else Any


def _part_of_model(cls: Any, fields: Mapping[str, Any], segment: str) -> Any:
    if is_root_model(cls):  # it is stored as its one value
        return part_hint(fields["root"], segment)
    return fields.get(segment, Any) if cls.model_config.get("extra") == "allow" else fields[segment]


def _part_of_union(options: tuple[Any, ...], segment: str) -> Any:
    for option in options:
        if unwrap(option) is type(None):
            continue
        try:
            return part_hint(option, segment)
        except KeyError:
            continue
    raise KeyError(segment)


def _is_row(cls: type) -> bool:
    """Say whether instances are stored as an array, whose parts have numbers."""
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.array_like)
    return issubclass(cls, tuple)


def immutable(value: Any) -> bool:
    """Say whether ``value`` can't be changed, so that it may be shared. Very cheap for scalars."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(immutable, value))
    return _immutable_class(kind)


def _is_immutable_class(cls: Any) -> bool:
    return _frozen(cls, set())


_immutable_class: Callable[[Any], bool] = lru_cache(maxsize=1024)(_is_immutable_class)


def _frozen(hint: Any, seen: set[Any]) -> bool:
    hint = unwrap(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS or origin in {tuple, frozenset}:
        return all(part is Ellipsis or _frozen(part, seen) for part in arguments)
    if origin is typing.Literal or hint is None or hint in SCALARS:
        return True
    cls = origin or hint
    if not isinstance(cls, type):
        return False
    if issubclass(cls, enum.Enum):
        return True
    if not _has_frozen_fields(cls):
        return False
    if hint in seen:
        return True
    seen.add(hint)
    try:
        fields = field_hints(hint)
    except (NameError, TypeError):  # hints that can't be resolved decide nothing
        return False
    return fields is not None and all(_frozen(part, seen) for part in fields.values())


def _has_frozen_fields(cls: type) -> bool:
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen)
    if issubclass(cls, tuple):
        return hasattr(cls, "_fields")
    parameters: Any = getattr(cls, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)
