"""Stored bytes as JSON, for people to read."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import msgspec

from dgents.runtime.errors import StateCorruptionError
from dgents.runtime.extensions import Tree

_PLAIN = frozenset({type(None), bool, int, str})


class _Tolerant(Tree):
    """Shows an extension that it does not know, in place of an error."""

    def revive(self, code: int, payload: memoryview) -> Any:
        try:
            return super().revive(code, payload)
        except (ValueError, TypeError, ArithmeticError, ImportError):
            return _Unknown((code, bytes(payload)))


class Items(list[Any]):
    """The items of a set as a list, whose order means nothing."""


class _Unknown(tuple[int, bytes]):
    """An extension as it was found: its number and its bytes. Hashable, so it may be in a set."""


def describe(data: bytes) -> Any:
    """Return any stored ``data`` as what JSON can say, whatever schema it was written under.

    Sets and tuples become lists, bytes ``{"$bytes": base64}``, other values their text. For reading only:
    it can't be stored in place of the data.

    Raises:
        StateCorruptionError: not MessagePack.
    """
    try:
        return _shown(_Tolerant(room=64).decode(data))
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise StateCorruptionError(f"not MessagePack: {error}") from error


def _shown(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key if type(key) is str else str(_shown(key)): _shown(part) for key, part in value.items()}
    if isinstance(value, _Unknown):
        return {"$extension": value[0], "$bytes": base64.b64encode(value[1]).decode()}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [_shown(part) for part in value]
    if isinstance(value, set | frozenset):
        return Items(_shown(part) for part in sorted(value, key=repr))  # in one order, whenever it is looked at
    tolist: Callable[[], Any] | None = getattr(value, "tolist", None)  # numpy's
    return str(value) if tolist is None else _shown(tolist())
