"""OpenAI Agents' SQLiteSession: the state is the last item of a session.

As in https://openai.github.io/openai-agents-python/sessions/ (``get_items``, ``add_items``). A session only grows: what
was read may be old when the next item is added, so concurrent increments are lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents import SQLiteSession

from dgents.benchmarks.states import State


class OpenAISession:
    """A session a key, in one database file."""

    name = "OpenAI Agents SQLiteSession"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        path = directory / "sessions.db"
        self._sessions: list[Any] = [SQLiteSession(str(key), path) for key in range(keys)]
        if state is not None:
            for key in range(keys):
                await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        (item,) = await self._sessions[key].get_items(limit=1)
        state: State = json.loads(item["content"])
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._sessions[key].add_items([{"role": "user", "content": json.dumps(state)}])

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    async def close(self) -> None:
        for session in self._sessions:
            session.close()
