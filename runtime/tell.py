"""What becomes of a `tell`: nobody waits for it, so a failure is published as a dead letter."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from dgents.runtime.commit import Failure

if TYPE_CHECKING:
    from dgents.runtime.actor import Cell


class Receipt:
    """Stands where a sender would wait."""

    __slots__ = ("_cell", "_done", "_message")

    def __init__(self, cell: Cell, message: Any) -> None:
        self._cell = cell
        self._message = message
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, reply: Any) -> None:
        self._done = True
        if type(reply) is Failure:
            self._cell.runtime.emit("dead_letter", self._cell.name, message=self._message, error=reply.error)

    def __await__(self) -> Generator[Any, None, Any]:
        raise TypeError("a tell has no reply")


class Sent:
    """The message is in the mailbox; awaiting this gives the actor a chance to run."""

    __slots__ = ("_loop",)

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __await__(self) -> Generator[Any, None, None]:
        return self._loop.checkpoint().__await__()  # type: ignore[no-any-return]
