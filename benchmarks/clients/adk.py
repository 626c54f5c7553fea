"""Google ADK: a session's state, changed by appending an event with a ``state_delta``.

That is the way that its documentation recommends: https://google.github.io/adk-docs/sessions/state/
The loss in memory has been reported: https://github.com/google/adk-python/issues/5244
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from google.adk.events import Event, EventActions
from google.adk.sessions import InMemorySessionService
from google.adk.sessions.sqlite_session_service import SqliteSessionService

from dgents.benchmarks.clients import Case
from dgents.testing import Add, Client, MakeClient

WHO: Any = {"app_name": "bench", "user_id": "ada", "session_id": "shared"}


class Session:
    """One session that every writer gets for itself, as each run of an agent does."""

    def __init__(self, service: Any) -> None:
        self._service = service

    async def read(self, key: str) -> Any:
        return (await self._service.get_session(**WHO)).state[key]

    async def write(self, key: str, value: Any) -> None:
        await self._append(await self._service.get_session(**WHO), key, value)

    async def update(self, key: str, change: Add) -> None:
        session = await self._service.get_session(**WHO)
        value = session.state[key]
        await asyncio.sleep(0)  # whatever the agent has to wait for
        await self._append(session, key, change(value))

    async def _append(self, session: Any, key: str, value: Any) -> None:
        event = Event(invocation_id="bench", author="user", actions=EventActions(state_delta={key: value}))
        await self._service.append_event(session, event)


@asynccontextmanager
async def opened(make_service: Callable[[], Any]) -> AsyncIterator[Client]:
    service = make_service()
    await service.create_session(**WHO)
    yield Session(service)


def memory(directory: Path) -> MakeClient:
    return partial(opened, InMemorySessionService)


def sqlite(directory: Path) -> MakeClient:
    return partial(opened, partial(SqliteSessionService, str(directory / "adk.db")))


CASES = [
    Case("Google ADK, in memory", "get_session, append_event(state_delta)", memory),
    Case("Google ADK, SQLite", "get_session, append_event(state_delta)", sqlite),
]
