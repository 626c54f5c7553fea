"""Where one contract test's actors live: a runtime, and the place in which their states outlive it."""

from __future__ import annotations

from typing import Any

import dgents
from dgents.runtime.events import Event
from tests.contract.agents import Subject

_ABSENT = object()


class World:
    """A runtime with actors of one subject, which can be closed and opened again on the same states."""

    def __init__(self, subject: Subject, place: Any, prefix: str) -> None:
        self.subject = subject
        self.events: list[Event] = []
        self.rt = dgents.Runtime()
        self._place = place
        self._prefix = prefix  # keeps the keys of different tests on one server apart
        self._options: dict[str, dict[str, Any]] = {}

    @property
    def is_durable(self) -> bool:
        return "durable" in self.subject.can

    def agent(self, name: str, **options: Any) -> Any:
        """Return the agent of the state ``name``."""
        return self.subject.make(self._place, self._prefix + name, **options)

    async def open(self, **options: Any) -> None:
        """Open a runtime."""
        self.rt = dgents.Runtime(on_event=self.events.append, **options)
        await self.rt.__aenter__()

    async def close(self) -> None:
        """Close the runtime, as leaving its block does."""
        await self.rt.__aexit__(None, None, None)

    async def spawn(self, name: str = "a", **options: Any) -> dgents.Ref[Any]:
        """Start an actor on the state ``name``; ``schema``, ``max_history`` and ``migrations`` are passed on."""
        self._options[name] = options
        return await self.rt.spawn(name, self.agent(name, **options))

    async def reopen(self, name: str = "a", **options: Any) -> dgents.Ref[Any]:
        """Close the runtime, open another one on the same states, and return the actor ``name`` of it."""
        await self.close()
        await self.open()
        return await self.spawn(name, **{**self._options[name], **options})

    async def check_reopened(self) -> None:
        """Check that every state, its version and its history are the same after the runtime was reopened."""
        names = [name for name in self.rt.names() if name in self._options]
        before = {name: await _whole(self.rt.get(name)) for name in names}
        await self.close()
        await self.open()
        for name in names:
            assert await _whole(await self.spawn(name, **self._options[name])) == before[name]


async def _whole(ref: dgents.Ref[Any]) -> Any:
    try:
        snapshot = await ref.snapshot()
    except dgents.StateNotFoundError:
        return _ABSENT, await _readable(ref.history())
    return repr(snapshot.state), snapshot.version, await _readable(ref.history())


async def _readable(history: Any) -> list[str]:
    return [repr(state) for state in await history]
