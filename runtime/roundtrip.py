"""Where a state and its stored form part: the slow walks that name a place, taken only once something is wrong."""

from __future__ import annotations

from typing import Any

from dgents.runtime.shapes import SCALARS, children, field_names

_BUFFERS = frozenset({bytearray, memoryview})


def find_difference(state: Any, stored: Any, path: str = "$") -> str | None:
    """Return where and how ``stored`` is not what ``state`` is, down to the types; None if it is the same."""
    kind = type(state)
    if type(stored) is not kind:
        return f"{path}: expected {type(stored).__name__}, found {kind.__name__}"
    if isinstance(state, set | frozenset):
        return _differing_set(state, stored, path)
    if isinstance(state, dict | list | tuple) or field_names(kind) is not None:
        return _differing_part(state, stored, path)
    if kind.__module__ == "numpy":
        same = state.dtype == stored.dtype and state.shape == stored.shape and state.tobytes() == stored.tobytes()
    else:
        same = bool(state == stored) or (state != state and stored != stored)
    return None if same else f"{path}: {_short(state)} would come back as {_short(stored)}"


def _differing_part(state: Any, stored: Any, path: str) -> str | None:
    before, after = dict(children(state)), dict(children(stored))
    if before.keys() != after.keys():
        step = min(before.keys() ^ after.keys())
        what = "would be lost" if step in before else "would be added"
        return f"{path}{step}: {what}"
    for step, part in before.items():
        if (found := find_difference(part, after[step], path + step)) is not None:
            return found
    return None


def _differing_set(state: Any, stored: Any, path: str) -> str | None:
    kinds = {(type(item), item) for item in state} ^ {(type(item), item) for item in stored}
    kinds = {(kind, item) for kind, item in kinds if item == item}
    if not kinds and len(state) == len(stored):
        return None
    return f"{path}: an item of the set would change: {', '.join(sorted(kind.__name__ for kind, _ in kinds))}"


def find_fault(state: Any, culprit: object, max_depth: int) -> tuple[str, str] | None:
    """Return the path of the first part of ``state`` that can't be stored, and why; None if every part can.

    Args:
        culprit: the object that was refused, where it is known; its path is then returned with an empty reason.
    """
    # An explicit stack: the state may be too deep for recursion, which may be what is wrong with it.
    stack: list[tuple[str, Any, int]] = [("$", state, 0)]
    above: list[int] = []
    while stack:
        path, value, depth = stack.pop()
        del above[depth:]
        if value is culprit:
            return path, ""
        if type(value) in _BUFFERS:
            return path, f"a {type(value).__name__} would come back as bytes; store bytes"
        if type(value) in SCALARS:
            continue
        if id(value) in above:
            return path, "the state contains itself"
        parts = list(children(value))
        if parts and depth >= max_depth:
            return path, f"nested more than {max_depth} levels deep"
        if parts:
            above.append(id(value))
            stack.extend((path + step, part, depth + 1) for step, part in reversed(parts))
    return None


def holds_buffer(state: Any) -> bool:
    """Say whether a bytearray or memoryview is anywhere in ``state``; both would be stored as bytes."""
    stack = [state]
    while stack:
        value = stack.pop()
        if type(value) in _BUFFERS:
            return True
        if type(value) is dict:
            stack.extend(value.values())
        elif type(value) in {list, tuple, set, frozenset}:
            stack.extend(value)
        elif field_names(type(value)) is not None:
            stack.extend(part for _, part in children(value))
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
