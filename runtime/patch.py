"""Parts of a state by their path, and changes to them as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateCorruptionError, StateNotFoundError
from dgents.runtime.shapes import field_names

Undo: TypeAlias = list[tuple[Any, Any, Any]]  # parent, key, and what was there

_CODEC: Codec[Any] = Codec()
_ABSENT = object()
_HEADERS = 512  # bytes by which what holds a changed part may grow besides: a map's own header, those of extensions


def parse_path(path: str) -> tuple[str, ...]:
    """Return the segments of ``path``: ``"users.u1.name"``. A backslash takes the next character as it is.

    Raises:
        ValueError: the path or one of its segments is empty, or it ends in a backslash.
        TypeError: it is no string.
    """
    if not isinstance(path, str):
        raise TypeError(f"a path is a string, such as 'users.u1.name' or 'notes.0', not {path!r}")
    segments: list[str] = []
    segment, letters = "", iter(path)
    for letter in letters:
        if letter == ".":
            segments.append(segment)
            segment = ""
        elif letter == "\\":
            taken = next(letters, None)
            if taken is None:
                raise ValueError(f"the path {path!r} ends in a backslash, which escapes nothing")
            segment += taken
        else:
            segment += letter
    segments.append(segment)
    if not all(segments):
        raise ValueError(f"the path {path!r} has an empty segment; write it as 'users.u1.name'")
    return tuple(segments)


def get_part(tree: Any, path: tuple[str, ...]) -> Any:
    """Return the part of ``tree`` at ``path``; raises `StateNotFoundError` where there is none."""
    for depth in range(len(path)):
        tree = _get(tree, _key(tree, path, depth))
    return tree


def set_part(tree: Any, path: tuple[str, ...], value: Any) -> None:
    """Put ``value`` at ``path``. The last key of a dict may be new; nothing else is created.

    Raises:
        StateNotFoundError: there is no such place; ``tree`` is unchanged.
    """
    parent = get_part(tree, path[:-1])
    _set(parent, _key(parent, path, len(path) - 1, new=True), value)


def _key(parent: Any, path: tuple[str, ...], depth: int, *, new: bool = False) -> Any:
    """Return the key or index in ``parent`` that the segment at ``depth`` names."""
    segment = path[depth]
    kind: Any = type(parent)
    number = int(segment) if segment.isdecimal() and len(segment) < 19 else None
    if isinstance(parent, dict):
        if segment in parent:
            return segment
        if number in parent and number is not None:
            return number
        if new:
            return segment
    elif isinstance(parent, list) or (isinstance(parent, tuple) and not new):
        if number is not None and number < len(parent):
            return number
    elif segment in (field_names(kind) or ()) and hasattr(parent, segment):
        return segment
    where = ".".join(path[: depth + 1])
    message = f"the state has no part {where!r}"
    raise StateNotFoundError(message, hint="save the part that holds it first, as a whole")


def _get(parent: Any, key: Any) -> Any:
    return parent[key] if isinstance(parent, dict | list | tuple) else getattr(parent, key)


def _set(parent: Any, key: Any, value: Any) -> None:
    # A tree is nobody else's: an instance in it may be changed even where its class is frozen.
    if isinstance(parent, dict | list):
        parent[key] = value
    elif isinstance(parent, msgspec.Struct):
        msgspec.structs.force_setattr(parent, key, value)
    else:
        object.__setattr__(parent, key, value)


def encode_patch(changes: Mapping[str, Any]) -> bytes:
    """Return ``changes``, values by their paths, as bytes for `apply_patch`.

    Raises:
        ValueError: a path is malformed.
        StateSerializationError: a value can't be stored.
    """
    for path in changes:
        parse_path(path)
    return _CODEC.encode(dict(changes))


def most_growth(patch: bytes, changes: Mapping[str, Any]) -> int:
    """Return how many bytes ``patch``, the encoded ``changes``, can add to an encoded state at the most."""
    return len(patch) + _HEADERS * len(changes)


def leads_through_extension(tree: Any, path: tuple[str, ...]) -> bool:
    """Say whether ``path`` leads through a tuple or an object, which are bytes of their own, or does not lead on."""
    for depth in range(len(path) - 1):
        if not isinstance(tree, dict | list):
            return True
        try:
            tree = _get(tree, _key(tree, path, depth))
        except StateNotFoundError:
            return True
    return not isinstance(tree, dict | list)


def apply_patch(tree: Any, patch: bytes) -> Undo:
    """Make the changes of ``patch`` in ``tree``, in order: all of them, or none. Return how to `undo_patch` them.

    Raises:
        StateNotFoundError: a change has no place in ``tree``.
        StateCorruptionError: ``patch`` is not what `encode_patch` returned.
    """
    changes = _CODEC.decode(patch)
    if type(changes) is not dict or not all(type(path) is str for path in changes):
        raise StateCorruptionError("a stored change is not a map of paths to values")
    undo: Undo = []
    try:
        for text, value in changes.items():
            path = parse_path(text)
            parent = get_part(tree, path[:-1])
            key = _key(parent, path, len(path) - 1, new=True)
            is_new = isinstance(parent, dict) and key not in parent
            undo.append((parent, key, _ABSENT if is_new else _get(parent, key)))
            _set(parent, key, value)
    except (StateNotFoundError, ValueError) as error:
        undo_patch(undo)
        if isinstance(error, StateNotFoundError):
            raise
        raise StateCorruptionError(f"a stored change can't be applied: {error}") from error
    return undo


def undo_patch(undo: Undo) -> None:
    """Take back what `apply_patch` changed."""
    for parent, key, old in reversed(undo):
        if old is _ABSENT:
            del parent[key]
        else:
            _set(parent, key, old)
