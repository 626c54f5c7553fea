"""Group commit for whatever arrives at the same time: while one batch runs, the next one gathers.

Invariants:

1. At most one task leads at a time; ``_led`` is true from when it begins until the last one found nobody
   waiting.
2. A leader runs one batch, with its own item first in it, and hands over to the first that waits.
3. Every item is answered once: with its own result, or with the error of its batch.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from dgents.runtime.errors import StorageError

A = TypeVar("A")
R = TypeVar("R")


class _Ticket(Generic[A, R]):
    """One item on its way. ``woken`` is set when it was answered, or when it is its turn to lead."""

    __slots__ = ("answer", "error", "item", "settled", "woken")

    def __init__(self, item: A) -> None:
        self.item = item
        self.woken = anyio.Event()
        self.settled = False
        self.answer: R | None = None
        self.error: BaseException | None = None


class Batcher(Generic[A, R]):
    """Turn many concurrent calls into few calls of ``run``, which takes a list and answers for each item.

    An answer that is an exception is raised in the one caller that it belongs to.

    Cancellation: a call, once made, runs to its end.

    Args:
        run: handles one batch; what it raises is raised in every caller of the batch.
        limit: how many items a batch has at most; what waits is bounded by the number of callers.
    """

    def __init__(self, run: Callable[[list[A]], Awaitable[Sequence[R | Exception]]], *, limit: int = 1000) -> None:
        self._run = run
        self._limit = limit
        self._waiting: deque[_Ticket[A, R]] = deque()
        self._led = False

    async def submit(self, item: A) -> R:
        """Return the answer of the batch that ``item`` gets into."""
        ticket: _Ticket[A, R] = _Ticket(item)
        self._waiting.append(ticket)
        with anyio.CancelScope(shield=True):
            if self._led:
                await self._wait(ticket)
            if not ticket.settled:
                await self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]  # R itself may be None

    async def _wait(self, ticket: _Ticket[A, R]) -> None:
        try:
            await ticket.woken.wait()
        except BaseException:
            # asyncio's own `task.cancel()` passes a shield: nobody may be left waiting for a leader that is
            # gone.
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                if ticket.woken.is_set():
                    self._hand_over()
            raise

    async def _lead(self, ticket: _Ticket[A, R]) -> None:
        self._led = True
        batch = [ticket]
        try:
            # Who is about to come in this round of the loop comes into this batch.
            await anyio.lowlevel.checkpoint()
            batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
            answers = await self._run([each.item for each in batch])
            for each, answer in zip(batch, answers, strict=True):
                self._settle(each, answer)
        except Exception as error:
            for each in batch:
                self._settle(each, copy.copy(error))
        except BaseException:
            if self._waiting and self._waiting[0] is ticket:
                self._waiting.popleft()
            for each in batch:
                self._settle(each, StorageError("the task that ran this batch was cancelled", outcome="unknown"))
            raise
        finally:
            self._hand_over()

    def _settle(self, ticket: _Ticket[A, R], answer: R | Exception) -> None:
        if ticket.settled:
            return
        ticket.settled = True
        if isinstance(answer, Exception):
            ticket.error = answer
        else:
            ticket.answer = answer
        ticket.woken.set()

    def _hand_over(self) -> None:
        if self._waiting:
            self._waiting[0].woken.set()
        else:
            self._led = False
