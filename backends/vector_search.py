"""Searches of one actor: those that wait together are one call of the engine, in a worker thread.

Invariants:

1. What a search sees is opened in a turn after it was sent: so it sees every write acknowledged before, whole.
2. It is answered once everything that it saw is durable.
3. One batch runs at a time; a search with a filter, or for many vectors, runs beside the batches, so that it keeps
   nobody waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec

from dgents.backends.vector_states import Id, StatesView
from dgents.runtime.codec import Codec
from dgents.runtime.commit import Failure, Staged
from dgents.runtime.deadlock import current_turn, turn_in_progress
from dgents.runtime.mailbox import Envelope
from dgents.runtime.patch import parse_path

if TYPE_CHECKING:
    from dgents.backends.vector_cell import VectorCell
    from dgents.backends.vector_index import Moment
    from dgents.backends.vector_input import Vectors
    from dgents.runtime.loops import Waiter

S = TypeVar("S")
Where = Callable[[Any], object] | Mapping[str, Any]

_BATCH = 1_000
_ALONE_FROM = 64  # vectors of one search
_ALONE_AT_ONCE = 2  # threads
_SMALL_K = 16
_ABSENT = object()


class Hit(msgspec.Struct, Generic[S], frozen=True):
    """One result of a search.

    Attributes:
        state: the caller's own copy.
        score: cosine or inner product (higher is nearer); for the metric l2 the squared distance (lower is nearer).
        id: what it was saved under.
    """

    state: S
    score: float
    id: str | int


class Asked(NamedTuple):
    """A search that waits."""

    queries: Vectors
    k: int
    where: Callable[[Any], object] | None
    waiter: Waiter


class Look(NamedTuple):
    """What a search sees: vectors and states of one moment, and the gate that its reply leaves by."""

    vectors: Moment
    states: StatesView
    gate: Staged | None

    def close(self) -> None:
        self.vectors.close()
        self.states.close()


class Searches:
    """The searches of one actor. Everything here runs in the runtime's thread, `find` excepted."""

    def __init__(self, cell: VectorCell) -> None:
        self._cell = cell
        self._waiting: list[Asked] = []
        self._running = False
        self._alone: anyio.CapacityLimiter | None = None

    async def ask(self, queries: Vectors, k: int, where: Callable[[Any], object] | None) -> list[list[Hit[Any]]]:
        """Search for each of the vectors.

        Cancellation: the search may run to its end; its reply is dropped.
        """
        asked = Asked(queries, k, where, self._cell.loop.waiter())
        reply: Any
        if current_turn.get() is None or (asker := turn_in_progress()) is None:
            self._begin(asked)
            reply = await asked.waiter
        else:
            with asker.waiting_for(self._cell, asked.waiter):
                self._begin(asked)
                reply = await asked.waiter
        if type(reply) is Failure:
            raise reply.again()
        return reply  # type: ignore[no-any-return]

    def _begin(self, asked: Asked) -> None:
        if asked.where is not None or len(asked.queries.values) >= _ALONE_FROM:
            self._cell.loop.start(self._run_alone, asked)
            return
        self._waiting.append(asked)
        if not self._running:
            self._running = True
            self._cell.loop.start(self._run)

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            await self._serve([asked for asked in batch if not asked.waiter.done()], None)
        self._running = False

    async def _run_alone(self, asked: Asked) -> None:
        if self._alone is None:
            self._alone = anyio.CapacityLimiter(_ALONE_AT_ONCE)
        await self._serve([asked], self._alone)

    async def _serve(self, batch: list[Asked], limiter: anyio.CapacityLimiter | None) -> None:
        """Search for a batch and answer it, whatever happens."""
        if not batch:
            return
        gate = None
        try:
            look = await self._look()
            gate = look.gate
            try:
                replies = await anyio.to_thread.run_sync(find, look, batch, self._cell.codec, limiter=limiter)
            finally:
                look.close()
        except Exception as error:
            replies = [Failure(error)] * len(batch)
        for asked, reply in zip(batch, replies, strict=True):
            _answer(asked.waiter, reply, gate)

    async def _look(self) -> Look:
        """Open what there is to see, in a turn."""
        cell = self._cell
        if cell.free:
            return cell.moment()
        looking = _Looking(cell.loop.waiter())
        cell.post(Envelope(looking.begin, (cell,), looking))
        found = await looking.opened
        if type(found) is Failure:
            raise found.again()
        return found  # type: ignore[no-any-return]


class _Looking:
    """Stands where a sender would wait for its turn: it goes on from the turn itself, not from its reply."""

    def __init__(self, opened: Waiter) -> None:
        self.opened = opened

    def begin(self, cell: VectorCell) -> None:
        self.opened.set_result(cell.moment())

    def done(self) -> bool:
        return self.opened.done()

    def set_result(self, reply: Any) -> None:
        if not self.opened.done():
            self.opened.set_result(reply)

    def __await__(self) -> Any:
        return self.opened.__await__()


def _answer(waiter: Waiter, reply: Any, gate: Staged | None) -> None:
    """Give a reply once everything that it depends on is durable."""
    if gate is not None and gate.error is not None:
        reply = Failure(gate.error)
    elif gate is not None and not gate.is_open:
        gate.answer(waiter, reply)
        return
    if not waiter.done():
        waiter.set_result(reply)


def find(look: Look, batch: Sequence[Asked], codec: Codec[Any]) -> list[list[list[Hit[Any]]] | Failure]:
    """Search for a batch in as few calls of the engine as possible; runs in a worker thread."""
    replies: list[Any] = [None] * len(batch)
    alike: dict[int, list[int]] = {}
    for place, asked in enumerate(batch):
        if asked.where is None:
            # One that asks for thousands must not have thousands looked up for all others.
            alike.setdefault(max(asked.k, _SMALL_K).bit_length(), []).append(place)
        else:
            replies[place] = _attempt(_filtered, look, asked, codec)
    for places in alike.values():
        some = [batch[place] for place in places]
        try:
            found = iter(look.vectors.search(_joined([asked.queries for asked in some]), max(it.k for it in some)))
        except Exception as error:
            replies = [Failure(error) if reply is None else reply for reply in replies]
            break
        for place, asked in zip(places, some, strict=True):
            pairs = [next(found)[: asked.k] for _ in asked.queries.values]
            replies[place] = _attempt(_hits, look.states, pairs, codec)
    return replies


def _attempt(fn: Callable[..., Any], *args: Any) -> Any:
    try:
        return fn(*args)
    except BaseException as error:
        return Failure(error)


def _joined(queries: list[Vectors]) -> Vectors:
    if len(queries) == 1:
        return queries[0]
    import numpy as np  # an optional dependency; it was imported with the index

    values = np.concatenate([part.scaled() for part in queries])
    return queries[0]._replace(values=values, scale=None, squares=values[:, 0])


def _filtered(look: Look, asked: Asked, codec: Codec[Any]) -> list[list[Hit[Any]]]:
    where = asked.where
    assert where is not None

    def allowed(id: Id) -> bool:
        verdict = where(codec.decode(look.states.get(id)))
        if hasattr(type(verdict), "__await__"):
            close = getattr(verdict, "close", None)
            if close is not None:
                close()
            raise TypeError("where is async; it must be a plain function of the state, or a dict of its fields")
        return bool(verdict)

    return _hits(look.states, look.vectors.search(asked.queries, asked.k, allowed=allowed), codec)


def _hits(states: StatesView, found: list[list[tuple[Id, float]]], codec: Codec[Any]) -> list[list[Hit[Any]]]:
    return [[Hit(codec.decode(states.get(id)), score, id) for id, score in pairs] for pairs in found]


def as_predicate(where: Where | None) -> Callable[[Any], object] | None:
    """Return ``where=`` as a function of the state: a dict names fields, ``"path.to.field"``, and what they equal.

    Raises:
        TypeError: it is neither a function nor a dict, or one of its keys is no path.
        ValueError: one of its paths has an empty segment.
    """
    if where is None or callable(where):
        return where
    if not isinstance(where, Mapping):
        raise TypeError(f"where is {type(where).__name__}; give a function of the state, or a dict of its fields")
    wanted = [(_path(path), value) for path, value in where.items()]
    return lambda state: all(_part(state, path) == value for path, value in wanted)


def _path(path: Any) -> tuple[str, ...]:
    try:
        return parse_path(path)
    except (TypeError, ValueError) as error:
        error.add_note("it is a key of where=, whose keys are paths of fields and whose values are what they equal")
        raise


def _part(state: Any, path: Sequence[str]) -> Any:
    for name in path:
        state = state.get(name, _ABSENT) if isinstance(state, Mapping) else getattr(state, name, _ABSENT)
    return state
