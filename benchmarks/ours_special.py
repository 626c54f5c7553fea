"""The actors whose state is not saved as a whole, behind the words of a `Peer`: a stream of events, and vectors."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import dgents
from dgents.benchmarks.ours import Dgent
from dgents.benchmarks.peers import Operation
from dgents.benchmarks.states import State, profile

DIMENSION = 384  # of a small model of sentences
OTHERS = 1_000  # vectors that are there besides those that are measured


class Stream(Dgent):
    """A stream of events in a directory: to increment is to append an event; there is no saving."""

    def __init__(self) -> None:
        super().__init__("stream", lambda directory: dgents.StreamAgent(_fold, profile(), event_log=directory / "log"))

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        await super().setup(directory, None, keys)
        if keys == 1:
            append = self.refs[0].append
            self.increment = lambda: append(1)
        else:
            self.increment = lambda key=0: self.refs[key].append(1)


def _fold(state: State, event: int) -> State:
    return {**state, "visits": state["visits"] + event}


class Vectors:
    """An index of vectors in a directory: to load is to search, to save is to put a state in place of the last one.

    To increment takes both, and is for one task at a time.
    """

    name = "vectors"
    load: Operation
    save: Operation
    increment: Operation

    def __init__(self) -> None:
        import numpy  # an optional dependency, as is the next one, which the agent imports
        import faiss  # noqa: F401  # isort: skip

        self._random = numpy.random.default_rng(7)

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        vectors = self._random.standard_normal((keys + OTHERS, DIMENSION), dtype="float32")
        async with AsyncExitStack() as opening:
            runtime = await opening.enter_async_context(dgents.Runtime())
            agent: dgents.VectorAgent[State] = dgents.VectorAgent(DIMENSION, path=directory / "vectors")
            ref = self._ref = await runtime.spawn("vectors", agent)
            if state is not None:
                count = keys + OTHERS
                await ref.save_many([state] * count, ids=list(range(count)), embeddings=vectors)
            self._closing = opening.pop_all()

        async def load(key: int = 0) -> State:
            hits = await ref.search(vectors[key], 1)
            found: State = hits[0].state
            return found

        async def save(state: State, key: int = 0) -> None:
            await ref.save(state, id=key, embedding=vectors[key])

        async def increment(key: int = 0) -> None:
            state = await load(key)
            await save(profile(state["visits"] + 1), key)

        self.load, self.save, self.increment = load, save, increment

    async def close(self) -> None:
        await self._closing.aclose()
