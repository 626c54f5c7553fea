"""What changed between two versions of a state, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from dgents.runtime.describe import Items

ABSENT: Any = object()


class Change(NamedTuple):
    """One part that changed. ``before`` or ``after`` is `ABSENT` where the part is new or gone.

    ``path`` is written as in `Ref.patch` (``users.u1.name``); empty for the whole state.
    """

    path: str
    before: Any
    after: Any


def changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Yield what leads from ``before`` to ``after``, both as `describe` shows states; the smallest parts it can name.

    Example:
        >>> [tuple(change) for change in changes({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]})]
        [('b.1', 2, 3)]
    """
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_maps(before, after, path)
    elif isinstance(before, Items) and isinstance(after, Items):
        yield from _of_sets(before, after, path)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _of_lists(before, after, path)
    elif not _equal(before, after):
        yield Change(path, before, after)


def _of_maps(before: dict[str, Any], after: dict[str, Any], path: str) -> Iterator[Change]:
    for key in [*before, *(key for key in after if key not in before)]:
        where = _join(path, key)
        if key in before and key in after:
            yield from changes(before[key], after[key], where)
        else:
            yield Change(where, before.get(key, ABSENT), after.get(key, ABSENT))


def _of_lists(before: list[Any], after: list[Any], path: str) -> Iterator[Change]:
    """Leave out what is the same at both ends; in between compare one by one, and the rest is new or gone."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and _equal(before[start], after[start]):
        start += 1
    end = 0
    while end < shorter - start and _equal(before[-1 - end], after[-1 - end]):
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    for number in range(max(len(old), len(new))):
        where = _join(path, str(start + number))
        if number < len(old) and number < len(new):
            yield from changes(old[number], new[number], where)
        elif number < len(old):
            yield Change(where, old[number], ABSENT)
        else:
            yield Change(where, ABSENT, new[number])


def _of_sets(before: Items, after: Items, path: str) -> Iterator[Change]:
    """Name the items that only one of the two has; an item has no place of its own, so the path is that of the set."""
    old = {_canonical(item): item for item in before}
    new = {_canonical(item): item for item in after}
    for text, item in old.items():
        if text not in new:
            yield Change(path, item, ABSENT)
    for text, item in new.items():
        if text not in old:
            yield Change(path, ABSENT, item)


def _canonical(value: Any) -> str:
    """Return a text that only what is equal has, in whatever order the items of a set are."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_canonical(part)}' for key, part in sorted(value.items()))}}}"
    if isinstance(value, list):
        parts = [_canonical(part) for part in value]
        return f"set{sorted(parts)}" if isinstance(value, Items) else f"[{', '.join(parts)}]"
    return repr(value)


def _equal(before: Any, after: Any) -> bool:
    """Say whether nothing changed; 1, 1.0 and True are three things."""
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_equal(part, after[key]) for key, part in before.items())
    if isinstance(before, Items):
        return _canonical(before) == _canonical(after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_equal, before, after))
    return bool(before == after)


def _join(path: str, key: str) -> str:
    segment = key.replace("\\", "\\\\").replace(".", "\\.")
    return f"{path}.{segment}" if path else segment
