"""What the kit asks of the thing that it examines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class Add:
    """The one change that the kit makes: ``value + amount``, of numbers and of lists.

    It is a function, and it is data: a client whose library has a merge of its own (a reducer, ``INCR``, an append)
    can hand it ``amount`` instead.
    """

    amount: Any

    def __call__(self, value: Any) -> Any:
        return value + self.amount


class Client(Protocol):
    """What the kit asks of the thing that it examines. Whatever a method raises means: refused, nothing was changed."""

    async def read(self, key: str) -> Any:
        """Return the value."""
        ...

    async def write(self, key: str, value: Any) -> None:
        """Replace the value, or refuse to, where the writing task read another one than there is now."""
        ...

    async def update(self, key: str, change: Add) -> None:
        """Change the value, in the way that the thing's own documentation recommends to concurrent callers."""
        ...


MakeClient: TypeAlias = Callable[[], AbstractAsyncContextManager[Client]]
