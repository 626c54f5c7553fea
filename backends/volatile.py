"""State in memory: as fast as an actor gets, gone with its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Generic

from dgents.runtime.arguments import check_history
from dgents.runtime.contract import Opened, Ownership, Record, Request, Resources, Write
from dgents.runtime.migrations import Migrations
from dgents.runtime.state_type import S
from dgents.runtime.turns import MISSING, own_copy

if TYPE_CHECKING:
    from dgents.runtime.ref import Ref


@dataclass(frozen=True, eq=False)
class VolatileAgent(Generic[S]):
    """Keep one state in memory.

    Args:
        initial: the state before anything was saved (version 0); none if left out. Each actor starts with a copy of
            what it is now.
        schema: the type of the state; any storable object if None.
        max_history: how many versions are kept, the current one among them; 0 keeps the current one only.
        migrations: accepted for symmetry; a state in memory has no old records.

    Example:
        >>> counter = await rt.spawn("counter", VolatileAgent(0))
        >>> await counter.update(lambda n: n + 1)
        1
    """

    initial: S | Any = MISSING
    _: KW_ONLY
    schema: type[S] | None = None
    max_history: int = 100
    migrations: Mapping[int, Callable[[Any], Any]] | None = None

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[Ref[S]]: ...

    local = True  # its states never leave the process: any class may be kept without naming a schema

    def __post_init__(self) -> None:
        if isinstance(self.initial, type):
            name = self.initial.__name__
            raise TypeError(f"initial is the class {name}; give a state, or schema={name}")
        check_history(self.max_history)
        Migrations(self.migrations, None)
        object.__setattr__(self, "initial", own_copy(self.initial))

    def reminders(self, name: str) -> None:
        """Keep the reminders in memory, like the state."""

    def backend(self, name: str, resources: Resources) -> VolatileBackend:
        return VolatileBackend(name, self.max_history)


class VolatileBackend:
    """A backend that stores nothing: the actor's own memory is the state."""

    ownership: Ownership = "exclusive"
    deltas = False
    store = None

    def __init__(self, key: str, max_history: int) -> None:
        self.key = key
        self.max_history = max_history

    async def open(self) -> Opened:
        return Opened(None, epoch=1)

    async def read(self) -> Record | None:
        return None

    async def history(self, limit: int | None = None) -> list[Record]:
        return []

    async def requests(self) -> list[Request]:
        return []

    async def committed(self, write: Write) -> bool | None:
        return None

    async def close(self) -> None:
        pass
