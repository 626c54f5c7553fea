"""LangGraph's AsyncSqliteSaver: read the last checkpoint, put the next one.

As in https://docs.langchain.com/oss/python/langgraph/persistence. It has no compare-and-set, so concurrent runs of a
thread lose updates; its documentation leaves that to its commercial server:
https://docs.langchain.com/langsmith/double-texting
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from dgents.benchmarks.states import State


class LangGraphSaver:
    """A thread a key; the state is a channel of its checkpoint."""

    name = "LangGraph AsyncSqliteSaver"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._closing = AsyncExitStack()
        path = str(directory / "checkpoints.db")
        self._saver: Any = await self._closing.enter_async_context(AsyncSqliteSaver.from_conn_string(path))
        if state is not None:
            for key in range(keys):
                await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        found = await self._saver.aget_tuple(_config(key))
        state: State = found.checkpoint["channel_values"]["state"]
        return state

    async def save(self, state: State, key: int = 0) -> None:
        checkpoint = {**empty_checkpoint(), "channel_values": {"state": state}}
        await self._saver.aput(_config(key), checkpoint, {"source": "update", "step": 0, "parents": {}}, {})

    async def increment(self, key: int = 0) -> None:
        state = await self.load(key)
        state["visits"] += 1
        await self.save(state, key)

    async def close(self) -> None:
        await self._closing.aclose()


def _config(key: int) -> Any:
    return {"configurable": {"thread_id": str(key), "checkpoint_ns": ""}}
