"""A caller who leaves in the middle: at a suspension of its call, whichever that is."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Generator
from typing import Any

import anyio


@types.coroutine
def _cancel_at(
    pending: Awaitable[Any], suspension: int, scope: anyio.CancelScope
) -> Generator[Any, Any, tuple[int, Any]]:
    steps = pending.__await__()
    count, reply, error = 0, None, None
    while True:
        try:
            waits_for = steps.throw(error) if error is not None else steps.send(reply)
        except StopIteration as stop:
            return count, stop.value
        count += 1
        if count == suspension:
            scope.cancel()
        reply, error = None, None
        try:
            reply = yield waits_for
        except BaseException as thrown:
            error = thrown


async def cancelled_at(pending: Awaitable[Any], suspension: int, scope: anyio.CancelScope) -> tuple[int, Any]:
    """Await ``pending``, cancelling ``scope`` at its n-th suspension; return how many there were, and the result."""
    return await _cancel_at(pending, suspension, scope)
