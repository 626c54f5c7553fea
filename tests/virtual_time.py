"""Virtual time for asyncio and trio: a pause takes none, and is as long as it says on the loop's own clock."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import trio.testing

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Jumps to the next timer where the loop would wait for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0 if timeout is not None else None)
        if not found and timeout is not None and timeout > 0:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose clock jumps to the next timer when nothing else is to be done."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now


def run(loop: str, program: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run a program that uses no threads in virtual time."""
    if loop == "asyncio":
        return anyio.run(program, *args, backend="asyncio", backend_options={"loop_factory": VirtualLoop})
    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(program, *args, backend="trio", backend_options={"clock": clock})
