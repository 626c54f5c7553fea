"""A window into a running runtime: a unix socket that tells, to whoever connects, what its actors are doing.

One connection, one line of JSON: ``{"tree": "...", "actors": {name: figures}}``. The socket is readable by its owner
alone, and only tells; nothing can be changed through it.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio.abc import SocketStream

from dgents.backends.files import storage_errors
from dgents.runtime.arguments import check_path
from dgents.runtime.errors import StorageError

if TYPE_CHECKING:
    from dgents.supervisors.runtime import Runtime


class Inspection:
    """Serves the figures of a runtime on a unix socket, from `open` to `close`."""

    def __init__(self, runtime: Runtime, path: str | Path) -> None:
        self._runtime = runtime
        self.path = Path(check_path("inspect", path))
        self._ended: Any = None

    async def open(self) -> None:
        """Begin to serve.

        Raises:
            StorageError: the socket can't be made there.
        """
        with storage_errors(self.path, "make the socket for inspection"):
            await anyio.to_thread.run_sync(_remove_stale, self.path)
            self._listener = await anyio.create_unix_listener(self.path, mode=0o600)
            self._inode = self.path.stat().st_ino
        self._scope = anyio.CancelScope()
        self._ended = self._runtime.loop.waiter()
        self._runtime.loop.start(self._serve)

    async def close(self) -> None:
        """Stop serving, and remove the socket."""
        if self._ended is not None:
            self._scope.cancel()
            await self._ended
            with suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:  # not that of another one that came since
                    self.path.unlink()

    async def _serve(self) -> None:
        with self._scope:
            async with self._listener:
                await self._listener.serve(self._tell)
        self._ended.set_result(None)

    async def _tell(self, stream: SocketStream) -> None:
        async with stream:
            actors = {name: msgspec.to_builtins(figures) for name, figures in self._runtime.stats().items()}
            line = json.dumps({"pid": os.getpid(), "tree": self._runtime.tree(), "actors": actors})
            with suppress(anyio.BrokenResourceError):
                await stream.send(line.encode() + b"\n")


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead process; anything else in its place is left alone.

    Raises:
        StorageError: somebody answers there.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise StorageError(
        f"another runtime serves its figures at {path}", retryable=False, hint="give each runtime a path of its own"
    )
