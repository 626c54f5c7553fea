"""Messages as data: what a checkpoint and a reminder keep of them.

Nothing that is read back names code to be run, with one exception that the program must ask for: a function that was
declared with `remindable` is kept by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dgents.runtime.codec import Codec
from dgents.runtime.errors import StateSerializationError
from dgents.runtime.messages import Append, Delete, Message, Patch, Save, Update
from dgents.runtime.turns import MISSING

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell

F = TypeVar("F", bound=Callable[..., Any])

_functions: dict[str, Callable[..., Any]] = {}


class SavedMessage(msgspec.Struct):
    """A message, as data."""

    kind: str
    body: bytes


def remindable(fn: F) -> F:
    """Let a function of a module be kept, by its name, in reminders and checkpoints that `Update` with it.

    Declare it in every program that may deliver such a reminder. Only declared functions are ever called, so who can
    write to the store can't choose what runs.

    Raises:
        ValueError: it is a lambda or a local function: no other process could find it.

    Example:
        >>> @remindable
        ... def fade(score: float) -> float:
        ...     return score * 0.9
    """
    name = _name(fn)
    if name is None:
        raise ValueError(f"{fn!r} has no name of its own in a module: define it with def, outside of other functions")
    _functions[name] = fn
    return fn


def _name(fn: Any) -> str | None:
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    return f"{module}:{name}"


def save_message(cell: Cell, message: Any) -> SavedMessage:
    """Return a message as data.

    Raises:
        StateSerializationError: it is none: an `Update` with a function that was not declared, or a question.
    """
    kind = type(message).__name__
    if type(message) is Save:
        return SavedMessage(kind, Codec(cell.codec.schema).encode(message.state))
    if type(message) is Patch:
        return SavedMessage(kind, Codec[Any]().encode(dict(message.changes)))
    if type(message) is Delete:
        return SavedMessage(kind, b"")
    if type(message) is Append and hasattr(cell, "save_event"):
        return SavedMessage(kind, cell.save_event(message.event))
    if type(message) is Update and _functions.get(_name(message.fn) or "") is message.fn:
        call: dict[str, Any] = {"fn": _name(message.fn), "args": list(message.args)}
        if message.default is not MISSING:
            call["default"] = Codec(cell.codec.schema).encode(message.default)
        return SavedMessage(kind, Codec[Any]().encode(call))
    hint = "send Save, Patch, Append or Delete"
    if type(message) is Update:
        hint += ", or define the function in a module and declare it with @dgents.remindable"
    raise StateSerializationError(
        f"this {kind} to {cell.name!r} can't be kept: it is not data", actor=cell.name, hint=hint
    )


def load_message(cell: Cell, saved: SavedMessage) -> Message[Any]:
    """Return a saved message as what it was.

    Raises:
        StateSerializationError: it names a function that this program has not declared.
    """
    if saved.kind == "Save":
        return Save(Codec(cell.codec.schema).decode(saved.body))
    if saved.kind == "Patch":
        return Patch(Codec[Any]().decode(saved.body))
    if saved.kind == "Append" and hasattr(cell, "load_event"):
        return Append(cell.load_event(saved.body))
    if saved.kind == "Update":
        call = Codec[Any]().decode(saved.body)
        fn = _functions.get(call["fn"])
        if fn is None:
            raise StateSerializationError(
                f"{call['fn']} is to update {cell.name!r}, and this program has not declared it",
                actor=cell.name,
                hint="declare it with @dgents.remindable, and import its module before the actor is spawned",
            )
        default = Codec(cell.codec.schema).decode(call["default"]) if "default" in call else MISSING
        return Update(fn, tuple(call["args"]), default)
    return Delete()
