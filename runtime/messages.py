"""The messages an actor understands, as data: what the methods of a `Ref` do, for `ask` and `tell`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from dgents.runtime.arguments import check_changes, check_function, check_limit, check_number
from dgents.runtime.errors import UnsupportedOperationError
from dgents.runtime.turns import MISSING, own_copy

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell
    from dgents.runtime.ref import Ref

T = TypeVar("T")

# What is to be run in the actor, with which arguments, and whether no other turn may share its batch.
Turn: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], bool]


class Message(msgspec.Struct, Generic[T], frozen=True):
    """Something an actor can be asked or told."""

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        """Return the turn that this message asks for."""
        raise NotImplementedError

    def result(self, ref: Ref[Any], reply: Any) -> Any:
        """Return what the sender gets for the turn's reply."""
        return reply


class Load(Message[Any], frozen=True):
    """Ask for the state."""

    default: Any = MISSING

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.look, (), False

    def result(self, ref: Ref[Any], reply: Any) -> Any:
        form, version = reply
        ref._saw(version)
        if form is None:
            if self.default is MISSING:
                raise ref._cell.not_found()
            return self.default
        return form.decode(ref._cell.codec)


class Save(Message[int], frozen=True):
    """Save a state; the reply is its version. The state is copied when the message is sent."""

    state: Any
    if_version: int | None = None

    def __post_init__(self) -> None:
        if self.if_version is not None:
            check_number("Save", "if_version", self.if_version)

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.put, (*cell.encode(self.state), self.if_version, ref._guard(self.if_version)), False

    def result(self, ref: Ref[Any], reply: Any) -> Any:
        ref._saw(reply)
        return reply


class Update(Message[Any], frozen=True):
    """Replace the state by what a function makes of it; the reply is the new state.

    The default is copied when the message is sent; the function and ``args`` are passed on as they are.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    default: Any = MISSING

    def __post_init__(self) -> None:
        check_function("Update", self.fn)

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.apply_queued, (self.fn, self.args, own_copy(self.default)), False

    def result(self, ref: Ref[Any], reply: Any) -> Any:
        state, version = reply
        ref._saw(version)
        return state


class Patch(Message[int], frozen=True):
    """Set parts of the state by path; the reply is the new version. The parts are copied when the message is sent."""

    changes: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_changes("Patch", self.changes)

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.patch, (own_copy(dict(self.changes)),), False


class Delete(Message[None], frozen=True):
    """Delete the state."""

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.delete, (), False

    def result(self, ref: Ref[Any], reply: Any) -> None:
        ref._saw(reply)


class Append(Message[int], frozen=True):
    """Append an event to a stream; the reply is its number. The event is copied when the message is sent."""

    event: Any
    if_version: int | None = None

    def __post_init__(self) -> None:
        if self.if_version is not None:
            check_number("Append", "if_version", self.if_version)

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        pack = getattr(cell, "pack", None)
        if pack is None:
            raise UnsupportedOperationError(
                f"append to {cell.name!r}: it keeps a state, not events",
                actor=cell.name,
                hint="save or update the state, or spawn a StreamAgent",
            )
        return cell.append, ((pack(self.event),), self.if_version), False  # type: ignore[attr-defined]


class Search(Message[list[Any]], frozen=True):
    """Ask for the entries whose vectors are nearest; the reply is what `VectorRef.search` returns."""

    vector: Any
    k: int = 5
    where: Any = None

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        # A ref on vectors answers it itself, beside the turns.
        raise UnsupportedOperationError(
            f"search of {cell.name!r}: it keeps a state, not vectors",
            actor=cell.name,
            hint="load the state, or spawn a VectorAgent",
        )


class History(Message[list[Any]], frozen=True):
    """Ask for the kept versions, oldest first, the newest ``limit`` of them."""

    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit("History", self.limit)

    def turn(self, ref: Ref[Any], cell: Cell) -> Turn:
        return cell.history, (self.limit,), True

    def result(self, ref: Ref[Any], reply: Any) -> Any:
        return [form.decode(ref._cell.codec) for form in reply]
