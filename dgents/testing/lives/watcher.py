"""Somebody who watches a state."""

from __future__ import annotations

from typing import Any

import anyio

import dgents
from dgents.testing.lives.operations import normal


class Watcher:
    """Reads what a watch yields; an impatient one gives up each wait before long, and waits a little longer then."""

    def __init__(self, ref: Any, *, impatient: bool) -> None:
        self.seen: list[tuple[int, Any]] = []
        self.ended = False
        self.error: Exception | None = None
        self._changes = ref.watch()
        self._patience = 0.0003 if impatient else float("inf")
        self._changed = anyio.Event()

    @property
    def newest(self) -> int:
        return self.seen[-1][0] if self.seen else -1

    async def changed(self) -> None:
        await self._changed.wait()

    async def run(self) -> None:
        try:
            while True:
                with anyio.move_on_after(self._patience) as scope:
                    snapshot = await anext(self._changes)
                    self.seen.append((snapshot.version, normal(snapshot.state)))
                    self._tell()
                if scope.cancelled_caught:  # a read of a store may take longer than that, whenever it is begun
                    self._patience *= 1.5
        except StopAsyncIteration:
            self.ended = True
        except dgents.DgentError:  # a watch may end with the reason for which its actor ended
            self.ended = True
        except Exception as error:
            self.error, self.ended = error, True
        finally:
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
