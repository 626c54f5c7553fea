"""Where the embedding of a state comes from, if it was not given: the state itself, or the agent's ``embed=``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any

import anyio
import anyio.to_thread

from dgents.runtime.errors import StateSerializationError

_AT_ONCE = 32  # async embeddings


class Embedder:
    """Finds the embeddings of the states of one actor, before their turn.

    A plain function runs in a worker thread, one call at a time, so it need not be safe for threads. An async one is
    awaited, up to 32 at a time. One with a method ``batch`` (plain or async) is called once for all states of a
    `save_many`: ``embed.batch(states)`` returns as many embeddings.
    """

    def __init__(self, actor: str, embed: Callable[[Any], Any] | None) -> None:
        self._actor = actor
        self._embed = embed
        self._limiter: anyio.CapacityLimiter | None = None

    async def of(self, states: Sequence[Any]) -> list[Any]:
        """Return the embeddings of the states, in order.

        Raises:
            StateSerializationError: a state has none, and there is no ``embed=``.
            Exception: whatever ``embed`` raises.
        """
        found = [own_embedding(state) for state in states]
        lacking = [place for place, embedding in enumerate(found) if embedding is None]
        if lacking:
            made = await self._call([states[place] for place in lacking])
            for place, embedding in zip(lacking, made, strict=True):
                found[place] = embedding
        return found

    async def _call(self, states: list[Any]) -> list[Any]:
        embed = self._embed
        if embed is None:
            raise StateSerializationError(
                f"save to {self._actor!r} refused: no embedding was given, and the state has none",
                actor=self._actor,
                hint="pass embedding=, give the state an attribute `embedding`, or the VectorAgent embed=",
            )
        batch = getattr(embed, "batch", None)
        if batch is not None and len(states) > 1:
            made = await self._run(batch, [states])
            embeddings = list(made[0])
            if len(embeddings) != len(states):
                raise ValueError(f"embed.batch returned {len(embeddings)} embeddings for {len(states)} states")
            return embeddings
        return await self._run(embed, states)

    async def _run(self, fn: Callable[[Any], Any], arguments: list[Any]) -> list[Any]:
        """Return what ``fn`` returns for each argument, awaited if need be."""
        if iscoroutinefunction(fn) or iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004  (its kind)
            return await _gather([fn(argument) for argument in arguments])
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        made = await anyio.to_thread.run_sync(lambda: [fn(it) for it in arguments], limiter=self._limiter)
        return await _gather(made) if made and hasattr(type(made[0]), "__await__") else made


def own_embedding(state: Any) -> Any:
    """Return the embedding that a state holds: its attribute, or its item, ``embedding``; None if it has none."""
    return state.get("embedding") if isinstance(state, Mapping) else getattr(state, "embedding", None)


async def _gather(pending: Sequence[Any]) -> list[Any]:
    """Await all, some at a time; of several errors, raise the first."""
    found: list[Any] = [None] * len(pending)
    errors: list[Exception] = []
    limiter = anyio.Semaphore(_AT_ONCE)

    async def wait_for(place: int) -> None:
        async with limiter:
            try:
                found[place] = await pending[place]
            except Exception as error:
                errors.append(error)
                tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for place in range(len(pending)):
                tasks.start_soon(wait_for, place)
    finally:
        for each in pending:
            close = getattr(each, "close", None)
            if close is not None:
                close()  # if it was never awaited
    if errors:
        raise errors[0]
    return found
