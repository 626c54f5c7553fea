"""Where a state and its stored form part: slow walks that name the place, once something is wrong."""

from __future__ import annotations

import datetime
import decimal
from typing import Any, NamedTuple

import msgpack

from dgents.runtime.shapes import SCALARS, children, field_names, step
from dgents.runtime.times import is_same_time

_CLOCKS = frozenset({datetime.datetime, datetime.time})
# MessagePack's own packer takes these without a question, and they would come back as something else.
_FOREIGN = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})


class Difference(NamedTuple):
    """The first part that would not come back as it is: where it is, how it would change, and the part itself."""

    path: str
    reason: str
    part: Any


def find_difference(state: Any, stored: Any, path: str = "$") -> Difference | None:
    """Return where ``stored`` is not what ``state`` is, down to the types, and how; None if it is the same.

    An int in the place of a float counts as the same: the schema says float, and the value is equal.
    """
    kind = type(state)
    if type(stored) is not kind:
        if kind is int and type(stored) is float and state == stored:
            return None
        return Difference(path, f"expected {type(stored).__name__}, found {kind.__name__}", state)
    if kind is dict:
        return _differing_dict(state, stored, path)
    if kind not in SCALARS:
        if isinstance(state, set | frozenset):
            return _differing_set(state, stored, path)
        if kind is list or kind is tuple or field_names(kind) is not None:
            return _differing_part(state, stored, path)
    if _is_same(state, stored):
        return None
    return Difference(path, f"{_short(state)} would come back as {_short(stored)}", state)


def _is_same(one: Any, other: Any) -> bool:
    if type(one) in _CLOCKS:
        return is_same_time(one, other)
    if type(one) is decimal.Decimal:  # not all of them can be compared, and equal ones may have more digits
        return str(one) == str(other)
    if type(one).__module__ == "numpy":
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one == other) or bool(one != one and other != other)


def _differing_dict(state: Any, stored: Any, path: str) -> Difference | None:
    # Both are in the order of insertion, which is stored.
    for (key, part), (stored_key, stored_part) in zip(state.items(), stored.items(), strict=False):
        if key is not stored_key and find_difference(key, stored_key) is not None:
            return Difference(path + step(key), "the key would change", key)
        if (found := find_difference(part, stored_part, path + step(key))) is not None:
            return found
    return None if len(state) == len(stored) else Difference(path, "keys would be lost", state)


def _differing_part(state: Any, stored: Any, path: str) -> Difference | None:
    before, after = dict(children(state)), dict(children(stored))
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        return Difference(path + name, "would be lost" if name in before else "would be added", state)
    for name, part in before.items():
        if (found := find_difference(part, after[name], path + name)) is not None:
            return found
    return None


def _differing_set(state: Any, stored: Any, path: str) -> Difference | None:
    here, there = {item: item for item in state}, {item: item for item in stored}
    for item in here.keys() & there.keys():
        if (found := find_difference(here[item], there[item], path)) is not None:
            return found._replace(path=path, reason=f"an item of the set would change: {found.reason}")
    # What equals nothing, not even itself (a NaN, a tuple of one), is compared by its text.
    lost = sorted(f"{type(item).__name__} {item!r}" for item in here.keys() - there.keys())
    added = sorted(f"{type(item).__name__} {item!r}" for item in there.keys() - here.keys())
    return None if lost == added else Difference(path, f"items of the set would change: {_short(lost)}", state)


def find_fault(state: Any, culprit: object, max_depth: int, max_wrapped: int) -> tuple[str, str] | None:
    """Return the path of the first part of ``state`` that can't be stored, and why; None if none is found.

    Args:
        culprit: the object that was refused, where known; its path is returned with an empty reason.
        max_depth: how many containers may be inside one another.
        max_wrapped: how many of these may be others than dicts and lists.
    """
    # An explicit stack: the state may be too deep for recursion, which may be what is wrong with it.
    stack: list[tuple[str, Any, int, int]] = [("$", state, 0, 0)]
    above: list[int] = []
    while stack:
        path, value, depth, wrapped = stack.pop()
        del above[depth:]
        if value is culprit:
            return path, ""
        if type(value) in _FOREIGN:
            return path, f"a {type(value).__name__} would not come back as one; store bytes"
        if type(value) in SCALARS:
            continue
        if id(value) in above:
            return path, "the state contains itself"
        if depth >= max_depth:
            return path, f"nested more than {max_depth} levels deep"
        wrapped += type(value) not in {dict, list}
        if wrapped > max_wrapped:
            return path, f"more than {max_wrapped} tuples, sets or objects inside one another"
        above.append(id(value))
        parts = [(path + name, part, depth + 1, wrapped) for name, part in children(value)]
        stack.extend(reversed(parts))
    return None


def check_parts(state: Any, max_depth: int) -> None:
    """Refuse what packing takes without a question, level by level: foreign values, and too many levels.

    Raises:
        TypeError: somewhere in ``state`` is a value that would be packed as something else.
        ValueError: ``state`` is nested too deeply.
    """
    level = [state]
    for _ in range(max_depth + 1):
        inner: list[Any] = []
        for value in level:
            kind: Any = type(value)
            if kind in _FOREIGN:
                raise TypeError(f"a {kind.__name__} would not come back as one")
            if kind is dict:
                inner.extend(value)
                inner.extend(value.values())
            elif kind is list or kind is tuple or kind is set or kind is frozenset:
                inner.extend(value)
            elif kind not in SCALARS and field_names(kind) is not None:
                inner.extend(part for _, part in children(value))
        if not inner:
            return
        level = inner
    raise ValueError(f"nested more than {max_depth} levels deep")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
