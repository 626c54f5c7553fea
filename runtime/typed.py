"""msgspec, bound to one schema, with hooks for the few types it lacks."""

from __future__ import annotations

import enum
import typing
from typing import Any

import msgspec

from dgents.runtime.extensions import Tree, UnsupportedValueError
from dgents.runtime.shapes import children, field_hints, is_pydantic, unwrap


class Converter:
    """Between states of one schema and what can be stored.

    Args:
        schema: the type of the states.

    Raises:
        TypeError: msgspec can't tell the parts of such a state from one another.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self._plain = Tree(room=8)
        self._classes = classes_of(schema)
        try:
            self.encode = msgspec.msgpack.Encoder(enc_hook=self._extend).encode
            self.decode = msgspec.msgpack.Decoder(schema, ext_hook=self._plain.revive, dec_hook=_fit).decode
        except (TypeError, NameError) as error:
            raise TypeError(f"schema={schema!r} can't be stored: {error}") from error

    def adapt(self, value: Any) -> Any:
        """Return an instance of one of the schema's classes as what `convert` makes such an instance of."""
        cls = type(value)
        if cls not in self._classes:
            raise UnsupportedValueError(value)
        if isinstance(value, enum.Enum):
            return value.value
        if is_pydantic(cls):
            return value.model_dump(mode="python", by_alias=True, round_trip=True, warnings=False)
        if issubclass(cls, tuple):
            return list(value)
        if issubclass(cls, msgspec.Struct):
            return _struct_fields(value)
        return {step[1:]: part for step, part in children(value)}

    def convert(self, tree: Any) -> Any:
        """Return the state that ``tree`` describes; raises `ValidationError` where it does not fit."""
        return msgspec.convert(tree, self.schema, dec_hook=_fit)

    def _extend(self, value: Any) -> Any:
        packed = self._plain.extend(value)
        return msgspec.msgpack.Ext(packed.code, packed.data)


def _struct_fields(value: msgspec.Struct) -> Any:
    config = value.__struct_config__
    parts = [getattr(value, name) for name in value.__struct_fields__]
    if config.array_like:
        return parts if config.tag is None else [config.tag, *parts]
    fields = dict(zip(value.__struct_encode_fields__, parts, strict=True))
    return fields if config.tag is None else {config.tag_field: config.tag, **fields}


def _fit(expected: Any, value: Any) -> Any:
    """Return ``value`` as ``expected``, a type that msgspec does not know."""
    cls = typing.get_origin(expected) or expected
    if isinstance(value, cls):
        return value
    if is_pydantic(cls):
        return cls.model_validate(value)
    raise ValueError(f"Expected `{cls.__name__}`, got `{type(value).__name__}`")


def classes_of(schema: Any) -> frozenset[type]:
    """Return the classes with fields, and the enums, that ``schema`` names anywhere."""
    found: set[type] = set()
    waiting, seen = [schema], set()
    while waiting:
        hint = unwrap(waiting.pop())
        if str(hint) + str(id(hint)) in seen:
            continue
        seen.add(str(hint) + str(id(hint)))
        waiting.extend(part for part in typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal)
        cls = typing.get_origin(hint) or hint
        if not isinstance(cls, type):
            continue
        if issubclass(cls, enum.Enum):
            found.add(cls)
        elif (fields := field_hints(hint)) is not None:
            found.add(cls)
            waiting.extend(fields.values())
    return frozenset(found)
