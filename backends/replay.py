"""Folding stored events: the state after each of them, in chunks, beside the event loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, TypeVar

from dgents.backends.event_codec import EventCodec, StoredEvent
from dgents.runtime.errors import StateError, StateSerializationError

S = TypeVar("S")


def fold_all(
    fold: Callable[[S, Any], S], state: S, chunk: Sequence[StoredEvent], codec: EventCodec[Any], actor: str
) -> S:
    """Return what the events of a chunk make of ``state``, which may be changed in place.

    Raises:
        StateError: the fold refuses an event that it once accepted; it says which.
    """
    events = codec.unpack_all(chunk)
    number = 0
    try:
        for number, event in enumerate(events):  # noqa: B007  (read where it failed)
            state = fold(state, event)
    except Exception as error:
        raise cannot_fold(actor, chunk[number], error) from error
    return state


def cannot_fold(actor: str, stored: StoredEvent, error: Exception) -> StateError:
    """Return the error for an event in the log that the fold refuses."""
    return StateSerializationError(
        f"event {stored.version} ({stored.tag}) of {actor!r} can't be folded: {type(error).__name__}: {error}",
        actor=actor,
        hint="it was accepted once: mend the fold, or lift such events with upcasters=; the log was left as it is",
    )


def fingerprint(fold: Callable[..., Any]) -> str:
    """Return what tells one fold from another, and from its own earlier text.

    It covers the function's own code, not what that calls; another release of Python compiles another one.
    """
    digest = hashlib.sha256(f"{getattr(fold, '__module__', '')}.{_name(fold)}".encode())
    code = getattr(getattr(fold, "__func__", fold), "__code__", None)
    if isinstance(code, CodeType):
        _add(digest, code)
    return digest.hexdigest()[:32]


def _name(fold: Callable[..., Any]) -> str:
    return getattr(fold, "__qualname__", None) or type(fold).__qualname__


def _add(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add(digest, constant)
        elif isinstance(constant, frozenset):  # its order is another one in each process
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
