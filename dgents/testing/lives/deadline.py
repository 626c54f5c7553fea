"""How long anything may take."""

from __future__ import annotations

from typing import Any

import anyio

from dgents.testing.lives.record import Violation


class within:
    """Fail, as a broken promise, what takes too long."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds = seconds
        self._what = what
        self._scope = anyio.CancelScope()

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(self._seconds)
        self._scope.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        caught = self._scope.__exit__(*exception)
        if self._scope.cancelled_caught:
            raise Violation(f"not done within {self._seconds} s: {self._what}")
        return caught
