"""msgspec, bound to one schema, with hooks for the few types it lacks."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from dgents.runtime.exact import Plan
from dgents.runtime.extensions import Tree, UnsupportedValueError
from dgents.runtime.instances import as_stored
from dgents.runtime.models import Reader, model_fields
from dgents.runtime.shapes import children, field_hints, field_names, is_exact, is_pydantic, unwrap


class Converter:
    """Between states of one schema and what can be stored.

    Args:
        schema: the type of the states.

    Attributes:
        convert: makes a state of what `adapt` made of one; raises `ValidationError` where it does not fit.
        exact: msgspec alone can read and write such states; else the untyped form has to help.
        encode_whole: where exact: writes each field, those too that `encode` may leave out of what `keeps` refuses.
        keeps: where exact: whether a state comes back of the same types, if what comes back is equal to it.
        is_faithful: where exact: what comes back of the same types is equal.

    Raises:
        TypeError: msgspec can't tell the parts of such a state from one another.
    """

    def __init__(self, schema: Any) -> None:
        self._plain = Tree(room=8)
        try:
            self._classes = classes_of(schema)
            self._reader = Reader(self._classes)
            self.exact = is_exact(schema)
            self.convert = self._converting(schema)
        except (TypeError, NameError, RecursionError) as error:
            raise TypeError(f"schema={schema!r} can't be stored: {error}") from error
        if self.exact:
            write = msgspec.msgpack.Encoder(enc_hook=self._extend).encode
            self.decode = msgspec.msgpack.Decoder(schema, ext_hook=self._plain.revive, dec_hook=self._reader.fit).decode
            plan = Plan(schema, write)
            self.keeps, self.is_faithful, lower = plan.keeps, plan.is_faithful, plan.lower
            self.encode_whole: Callable[[Any], bytes] = lambda state: write(lower(state))
            self.encode: Callable[[Any], bytes] = self.encode_whole if plan.lowers else write

    def adapt(self, value: Any) -> Any:
        """Return an instance of one of the schema's classes as what `convert` makes such an instance of."""
        cls = type(value)
        if cls not in self._classes:
            raise UnsupportedValueError(value)
        if isinstance(value, enum.Enum):
            return value.value
        if is_pydantic(cls):
            return model_fields(value)
        if issubclass(cls, tuple):
            return list(value)
        if issubclass(cls, msgspec.Struct):
            return as_stored(value, [getattr(value, name) for name in field_names(cls) or ()])
        return {step[1:]: part for step, part in children(value)}

    def _converting(self, schema: Any) -> Callable[[Any], Any]:
        fit = self._reader.fit
        try:
            msgspec.msgpack.Decoder(schema, dec_hook=fit)
        except TypeError:
            whole = self._reader.whole(schema)  # several models at one place are told apart by Pydantic
            if whole is None:
                raise
            return whole
        return lambda tree: msgspec.convert(tree, schema, dec_hook=fit)

    def _extend(self, value: Any) -> Any:
        packed = self._plain.extend(value)
        return msgspec.msgpack.Ext(packed.code, packed.data)


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
