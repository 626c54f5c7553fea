"""What dgents is measured against: other ways of keeping a state, each behind the same few words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Operation: TypeAlias = Callable[..., Awaitable[Any]]


class Peer(Protocol):
    """One way of keeping states.

    `load`, `save` and `increment` are properties, so that ours can hand out its actor's own methods: a layer
    in between would cost more than some of the peers do altogether. Each takes ``key=0``.
    """

    name: str

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        """Begin with ``keys`` states equal to ``state``; with None, go on with what ``directory`` holds."""
        ...

    @property
    def load(self) -> Operation:
        """``await load()`` returns the state."""
        ...

    @property
    def save(self) -> Operation:
        """``await save(state)`` returns once it is as safe as this peer makes it."""
        ...

    @property
    def increment(self) -> Operation:
        """``await increment()`` adds one to the state's ``visits``."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
