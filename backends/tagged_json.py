"""MessagePack as JSON that a person can read, and back to the very same bytes.

What JSON has no form for is an object with one key, its *tag*, that begins with one ``$``; a user's own key
that begins with ``$`` gets a second one in front, so the two can't be taken for each other:

    {"$bytes": "aGk="}                        bytes, in base64
    {"$float": "nan"}                         nan, inf, -inf
    {"$timestamp": "2026-11-23T04:50:00+00:00"}
    {"$map": [[1, "one"], [true, "yes"]]}     a map with keys that are no texts
    {"$tuple": [1, 2]}  {"$set": [1, 2]}  {"$frozenset": [1, 2]}
    {"$int": "18446744073709551616"}  {"$decimal": "1.50"}  {"$uuid": "…"}
    {"$datetime": "…"}  {"$date": "…"}  {"$time": "…"}
    {"$ext": [13, "aGk="]}                    any other extension type
    {"$msgpack": "aGk="}                      a whole state that none of this gives back exactly

Nothing is trusted to come back: `to_json` makes the way back before it answers.
"""

from __future__ import annotations

import base64
import datetime
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dgents.runtime.extensions import BIGINT, DATE, DATETIME, DECIMAL, FROZENSET, SET, TIME, TUPLE, UUID


class _Extension:
    """An extension value that can be the key of a map, which `msgspec.msgpack.Ext` can't."""

    __slots__ = ("code", "payload")

    def __init__(self, code: int, payload: bytes) -> None:
        self.code = code
        self.payload = payload

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Extension) and (self.code, self.payload) == (other.code, other.payload)

    def __hash__(self) -> int:
        return hash((self.code, self.payload))


def _to_ext(value: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(value.code, value.payload)


def _from_ext(code: int, payload: memoryview) -> _Extension:
    return _Extension(code, bytes(payload))


_pack = msgspec.msgpack.Encoder(enc_hook=_to_ext).encode
_unpack = msgspec.msgpack.Decoder(ext_hook=_from_ext).decode
_dump = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder().decode

_UNFIT = (ValueError, TypeError, LookupError, OverflowError, RecursionError)


def to_json(data: bytes) -> bytes:
    """Return the JSON from which `from_json` makes exactly ``data``."""
    try:
        tree = _unpack(data)
        text = _plain(tree, data)
        if text is None:
            text = _dump(_tag(tree))
            if from_json(text) != data:
                text = None
    except _UNFIT:
        text = None
    return text if text is not None else _dump({"$msgpack": _to_base64(data)})


def from_json(text: bytes | msgspec.Raw) -> bytes:
    """Return the MessagePack that ``text`` stands for.

    Raises:
        ValueError: it is not what `to_json` writes.
    """
    tree = _parse(text)
    if b'"$' not in bytes(text):
        return _pack(tree)
    if isinstance(tree, dict) and len(tree) == 1 and "$msgpack" in tree:
        return base64.b64decode(tree["$msgpack"], validate=True)
    try:
        return _pack(_untag(tree))
    except _UNFIT as error:
        raise ValueError(f"a tagged value is malformed: {error}") from error


def _plain(tree: Any, data: bytes) -> bytes | None:
    """Return the JSON of a tree that needs no tags; that it needs none is seen from its way back."""
    try:
        text = _dump(tree)
    except TypeError:
        return None
    if b'"$' in text or _pack(_parse(text)) != data:
        return None
    return text


def _tag(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if all(type(key) is str for key in value):
            return {f"${key}" if key.startswith("$") else key: _tag(item) for key, item in value.items()}
        return {"$map": [[_tag(key), _tag(item)] for key, item in value.items()]}
    if kind is list or kind is tuple:  # an array is a tuple where it is the key of a map
        return [_tag(item) for item in value]
    if kind is bytes:
        return {"$bytes": _to_base64(value)}
    if kind is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if kind is datetime.datetime:
        return {"$timestamp": value.isoformat()}
    return _tag_extension(value) if kind is _Extension else value


def _tag_extension(value: _Extension) -> dict[str, Any]:
    tag = _TAGS.get(value.code)
    if tag is None:
        return {"$ext": [value.code, _to_base64(value.payload)]}
    return {tag: _FORMS[tag][1](value.payload)}


def _untag(value: Any) -> Any:
    if type(value) is list:
        return [_untag(item) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag.startswith("$") and not tag.startswith("$$"):
            return _READERS[tag](content)
    return {key[1:] if key.startswith("$") else key: _untag(item) for key, item in value.items()}


def _read_extension(tag: str) -> Callable[[Any], _Extension]:
    code, _, read = _FORMS[tag]
    return lambda content: _Extension(code, read(content))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if type(value) is list else value


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _array_to_json(payload: bytes) -> Any:
    return _tag(_unpack(payload))


def _array_from_json(content: Any) -> bytes:
    return _pack(_untag(content))


def _int_to_json(payload: bytes) -> str:
    return str(int.from_bytes(payload, "big", signed=True))


def _int_from_json(content: str) -> bytes:
    value = int(content)
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


_ARRAY = (_array_to_json, _array_from_json)
_TEXT = (bytes.decode, str.encode)

# By tag: the extension's code, its payload to JSON, and JSON to its payload.
_FORMS: Mapping[str, tuple[int, Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "$tuple": (TUPLE, *_ARRAY),
    "$set": (SET, *_ARRAY),
    "$frozenset": (FROZENSET, *_ARRAY),
    "$int": (BIGINT, _int_to_json, _int_from_json),
    "$datetime": (DATETIME, *_TEXT),
    "$date": (DATE, *_TEXT),
    "$time": (TIME, *_TEXT),
    "$decimal": (DECIMAL, *_TEXT),
    "$uuid": (UUID, lambda payload: str(uuid.UUID(bytes=payload)), lambda content: uuid.UUID(content).bytes),
}
_TAGS = {form[0]: tag for tag, form in _FORMS.items()}
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "$bytes": lambda content: base64.b64decode(content, validate=True),
    "$float": float,
    "$timestamp": datetime.datetime.fromisoformat,
    "$map": lambda pairs: {_hashable(_untag(key)): _untag(item) for key, item in pairs},
    "$ext": lambda content: _Extension(content[0], base64.b64decode(content[1], validate=True)),
    **{tag: _read_extension(tag) for tag in _FORMS},
}
