"""The ref of an actor in Redis: it can also run raw commands."""

from __future__ import annotations

from typing import Any, TypeVar

from dgents.runtime.ref import Ref

S = TypeVar("S")


class RedisRef(Ref[S]):
    """A `Ref` with raw Redis commands, in turn with the actor's other messages."""

    __slots__ = ()

    async def execute(self, *args: Any) -> Any:
        """Run a raw command and return its reply; the keys in it are the user's own.

        Raises:
            UnsupportedOperationError: the command would change the connection that all actors share.
            StorageError: the server refused it, or the connection failed. It is never sent twice by itself, so a
                command whose reply was lost may have run.

        Example:
            >>> await ref.execute("INCR", "counter")
            1
        """
        cell = self._live()
        return await cell.call(cell.command, *args, alone=True)
