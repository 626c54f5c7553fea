"""LangGraph: concurrent runs of one thread, whose channels add by a reducer.

Its documentation says that runs of one thread at a time ("double texting") are handled by its commercial server and
"not available in the LangGraph open source framework": https://docs.langchain.com/langsmith/double-texting
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from dgents.benchmarks.clients import Case
from dgents.testing import Add, Client, MakeClient

CONFIG: Any = {"configurable": {"thread_id": "shared"}}


# Reducers: https://docs.langchain.com/oss/python/langgraph/graph-api#reducers
class State(TypedDict):
    counter: Annotated[int, operator.add]
    appends: Annotated[list[str], operator.add]


async def work(state: State) -> dict[str, Any]:
    """Wait for something, as a node that asks a model does."""
    await asyncio.sleep(0)
    return {}


class Thread:
    """One thread of a graph with one node; what `write` is given is added too, so it can only begin with nothing."""

    def __init__(self, saver: Any) -> None:
        graph = StateGraph(State)
        graph.add_node("work", work)
        graph.add_edge(START, "work")
        graph.add_edge("work", END)
        self._graph: Any = graph.compile(checkpointer=saver)

    async def read(self, key: str) -> Any:
        return (await self._graph.aget_state(CONFIG)).values[key]

    async def write(self, key: str, value: Any) -> None:
        await self._graph.ainvoke({key: value}, CONFIG)

    async def update(self, key: str, change: Add) -> None:
        await self._graph.ainvoke({key: change.amount}, CONFIG)


@asynccontextmanager
async def open_memory() -> AsyncIterator[Client]:
    yield Thread(InMemorySaver())


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[Client]:
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        yield Thread(saver)


def memory(directory: Path) -> MakeClient:
    return open_memory


def sqlite(directory: Path) -> MakeClient:
    return partial(open_sqlite, directory / "langgraph.db")


CASES = [
    Case("LangGraph, InMemorySaver", "graph.ainvoke on one thread_id, operator.add", memory),
    Case("LangGraph, AsyncSqliteSaver", "graph.ainvoke on one thread_id, operator.add", sqlite),
]
