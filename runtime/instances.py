"""What msgspec makes of the instances of a class: which fields it writes, and whether they come back as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from dgents.runtime.shapes import field_names


def as_stored(value: Any, parts: list[Any]) -> Any:
    """Return the map or the row as which an instance is stored, with ``parts`` for the values of its fields."""
    cls = type(value)
    if issubclass(cls, tuple):
        return parts
    if not issubclass(cls, msgspec.Struct):
        return dict(zip(field_names(cls) or (), parts, strict=True))
    config = cls.__struct_config__
    if config.array_like:
        return parts if config.tag is None else [config.tag, *parts]
    named = zip(cls.__struct_encode_fields__, parts, strict=True)
    fields = {name: part for name, part in named if part is not msgspec.UNSET}
    return fields if config.tag is None else {config.tag_field: config.tag, **fields}


def getter(cls: Any) -> Callable[[Any], tuple[Any, ...]]:
    names = field_names(cls) or ()
    if issubclass(cls, tuple):
        return tuple
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def getter_of_dict(cls: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Return what gets the parts that an instance has itself, as opposed to its class: msgspec writes only these."""
    names = field_names(cls) or ()
    if len(names) > 1:
        get = itemgetter(*names)
        return lambda value: get(value.__dict__)
    return lambda value: tuple(value.__dict__[name] for name in names)


def has_class_defaults(cls: Any) -> bool:
    """Say whether an instance without some of its fields looks as if it had them."""
    return dataclasses.is_dataclass(cls) and any(
        field.default is not dataclasses.MISSING and getattr(cls, field.name, None) is field.default
        for field in dataclasses.fields(cls)
    )


def hides(cls: Any) -> bool:
    """Say whether msgspec leaves out some fields of an instance when it writes it."""
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.omit_defaults)
    return hasattr(cls, "__attrs_attrs__") and any(name.startswith("_") for name in field_names(cls) or ())


def changes_itself(cls: Any) -> bool:
    """Say whether an instance may become another one, or be refused, while it is read."""
    if any(hasattr(cls, name) for name in ("__post_init__", "__attrs_post_init__", "__attrs_pre_init__")):
        return True
    if any(attribute.validator for attribute in getattr(cls, "__attrs_attrs__", ())):
        return True
    return any(isinstance(getattr(cls, name, None), property) for name in field_names(cls) or ())


def compares_all(cls: Any) -> bool:
    """Say whether equal instances are equal in each field: nobody wrote an ``__eq__``, or left out a field."""
    if issubclass(cls, msgspec.Struct):
        return cls.__eq__ is msgspec.Struct.__eq__ and bool(cls.__struct_config__.eq)
    if not _is_generated(vars(cls).get("__eq__")):
        return False
    if hasattr(cls, "__attrs_attrs__"):
        return all(attribute.eq is True for attribute in cls.__attrs_attrs__)
    return all(field.compare for field in cls.__dataclass_fields__.values())


def _is_generated(function: Any) -> bool:
    """Say whether dataclasses or attrs made a method, and nobody wrote it."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(("<string>", "<attrs generated"))
