"""The handle on a vector store: states go in with their embeddings, the nearest come out."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

import anyio
import anyio.to_thread

from dgents.backends.vector_cell import VectorCell, no_such
from dgents.backends.vector_search import Hit, Where, as_predicate
from dgents.backends.vector_states import Id
from dgents.runtime.errors import AskTimeoutError, StateError, StateNotFoundError, UnsupportedOperationError
from dgents.runtime.messages import Message, Search
from dgents.runtime.ref import Ref
from dgents.runtime.tell import Sent
from dgents.runtime.turns import MISSING, Snapshot

S = TypeVar("S")
T = TypeVar("T")

_MASK = 127


class VectorRef(Ref[S]):
    """A `Ref` on many states, found by their vectors.

    A search sees every write that was acknowledged before it was sent, and a save of many whole or not at all. The
    version of the actor grows by one with each call that wrote. An id is a str or an int; ``"1"`` and ``1`` are two.
    """

    __slots__ = ()

    # Writing

    async def save(
        self,
        state: S,
        *,
        id: Id | None = None,
        embedding: Any = None,
        if_version: int | None = None,
        request_id: str | None = None,
    ) -> int:
        """Save a state with its embedding, and return the version, once it is durable.

        Args:
            id: what it is saved under, in place of what was there. None: a new int, higher than all before; a
                search shows it as ``hit.id``, and `save_many` returns the ids that it gave.
            embedding: any sequence of numbers; None: the state's own attribute (or item) ``embedding``, or else what
                the agent's ``embed=`` makes of the state.
            if_version: save only if this is the current version of the whole.
            request_id: the same id again is answered with the first version, and nothing is saved.

        Raises:
            InvalidVectorError (a StateSerializationError and ValueError): another dimension, NaN, infinite, or without
                a direction where the metric is cosine; or the id can't be one. It names the id.
            StateSerializationError: the state can't be stored, or has no embedding.
            StateTooLargeError: all states and vectors would be larger than the budget.
        """
        cell = self._vectors()
        await cell.ready()
        if embedding is None:
            (embedding,) = await cell.embedder.of([state])
        entries = cell.entries([state], None if id is None else [id], [embedding])
        coop = cell.coop
        coop.turn = turn = coop.turn + 1
        if not turn & _MASK:
            await cell.loop.checkpoint()
        if cell.free and request_id is None and get_ident() == cell.thread:
            cell.turns += 1
            cell.touched = turn
            try:
                version = cell.save(entries, if_version)
            except StateError:
                if cell.gate is not None:  # the error may tell of a save that is not durable yet
                    await cell.gate.wait()
                raise
            if cell.gate is not None:
                await cell.gate.wait()
            return version
        return cast(int, await self._ask(cell, request_id, cell.save, entries, if_version))

    async def save_many(
        self, states: Sequence[S], *, ids: Sequence[Id | None] | None = None, embeddings: Any = None
    ) -> list[Id]:
        """Save states with their embeddings, all or none, and return their ids, once all are durable.

        Args:
            ids: one for each state, None where the store is to give one; of several that are equal the last counts.
            embeddings: a matrix with one row for each state, or a sequence of vectors; None as in `save`.

        Raises as `save`, and:
            ValueError: there are not as many ids or embeddings as states.
            TypeError: the states are no list of states, or the embeddings no list of vectors.
        """
        if isinstance(states, str | bytes | Mapping) or not isinstance(states, Iterable):
            raise TypeError(f"save_many to {self.name!r}: give a list of states; save(state) takes a single one")
        states = list(states)
        if not states:
            return []
        cell = self._vectors()
        await cell.ready()
        if embeddings is None:
            embeddings = await cell.embedder.of(states)
        if len(states) <= cell.inline:
            entries = cell.entries(states, ids, embeddings)
        else:
            entries = await anyio.to_thread.run_sync(cell.entries, states, ids, embeddings)
        saved: list[Id] = await cell.call(cell.save_many, entries)
        return saved

    async def delete(self, id: Id, *, request_id: str | None = None) -> None:  # type: ignore[override]  # one of many
        """Delete what is saved under ``id``; what is not there may be deleted too."""
        cell = self._vectors()
        plain = await self._checked(cell, id)
        await self._ask(cell, request_id, cell.remove, plain)

    # Reading

    async def search(self, vector: Any, k: int = 5, *, where: Where | None = None) -> list[Hit[S]]:
        """Return the ``k`` nearest entries, nearest first; fewer if there are no more.

        Searches that wait at the same time are compared in one go, in a worker thread.

        Args:
            vector: a sequence of ``dimension`` numbers.
            where: only among entries whose state this function allows, or whose fields equal those of this dict
                (``{"user.name": "Ada"}``). The function runs in a worker thread, from the nearest entry on, until
                ``k`` are found or all were asked.

        Raises:
            InvalidVectorError (a StateSerializationError and ValueError): the vector can't be compared with the others.
            ValueError: ``k`` is not 1 or more, or a path in ``where`` has an empty segment.
            TypeError: ``where`` is neither a function nor a dict of paths.
            Exception: whatever ``where`` raises.
        """
        (hits,) = await self._search([vector], k, where)
        return hits

    async def search_many(self, matrix: Any, k: int = 5, *, where: Where | None = None) -> list[list[Hit[S]]]:
        """Return the ``k`` nearest entries of each vector of a matrix. Raises as `search`."""
        return await self._search(matrix, k, where)

    async def _search(self, vectors: Any, k: int, where: Where | None) -> list[list[Hit[S]]]:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; give how many to find, 1 or more")
        allowed = as_predicate(where)
        if not hasattr(vectors, "__len__"):
            raise TypeError(f"search_many in {self.name!r}: {vectors!r} is no matrix; give one vector a row")
        cell = self._vectors()
        cell.admit(Search(vectors, k, where), waits=True)
        await cell.ready()
        if len(vectors) <= cell.inline:
            queries = cell.queries(vectors)
        else:
            queries = await anyio.to_thread.run_sync(cell.queries, vectors)
        if not len(queries.values):
            return []
        cell.turns += 1
        cell.touched = cell.coop.turn
        return await cell.searches.ask(queries, k, allowed)

    async def get(self, id: Id, *, default: Any = MISSING) -> S:
        """Return the caller's own copy of the state that is saved under ``id``.

        Raises:
            StateNotFoundError: there is none, and no default.
        """
        cell = self._vectors()
        data = await cell.call(cell.entry, await self._checked(cell, id))
        if data is not None:
            return cell.codec.decode(data)  # type: ignore[no-any-return]
        if default is MISSING:
            raise StateNotFoundError(
                f"nothing is saved in {self.name!r} under the id {id!r}",
                actor=self.name,
                hint="search for it, or pass default=",
            )
        return default  # type: ignore[no-any-return]

    async def count(self) -> int:
        """Return how many entries there are."""
        cell = self._vectors()
        count: int = await cell.call(cell.count)
        return count

    # Messages

    async def ask(self, message: Message[T], *, timeout: float | None = None) -> T:
        """Send a message and return its reply; see `Ref.ask`. A `Search` runs beside the turns."""
        if not isinstance(message, Search):
            return await super().ask(message, timeout=timeout)
        with anyio.move_on_after(timeout):
            return await self.search(message.vector, message.k, where=message.where)  # type: ignore[return-value]
        raise AskTimeoutError(
            f"no reply from {self.name!r} to Search within {timeout} s",
            actor=self.name,
            hint="wait longer, or look at rt.stats() for what keeps the actor busy",
        )

    def tell(self, message: Message[Any]) -> Sent:
        """Put a message into the mailbox and do not wait for it; see `Ref.tell`."""
        if isinstance(message, Search):
            raise UnsupportedOperationError(
                f"tell(Search) to {self.name!r}: nobody would get the reply", actor=self.name, hint="ask, or search"
            )
        return super().tell(message)

    # What many states have not

    async def load(self, *, default: Any = MISSING, version: int | None = None) -> S:
        """Raise `UnsupportedOperationError`: search instead."""
        raise no_such(self.name, "load")

    async def snapshot(self) -> Snapshot[S]:
        """Raise `UnsupportedOperationError`: search instead."""
        raise no_such(self.name, "snapshot")

    async def history(self, limit: int | None = None) -> list[S]:
        """Raise `UnsupportedOperationError`: only the newest state of an id is kept."""
        raise no_such(self.name, "history")

    async def update(
        self, fn: Callable[..., Any], *args: Any, default: Any = MISSING, request_id: str | None = None
    ) -> S:
        """Raise `UnsupportedOperationError`: save the new state with its embedding instead."""
        raise no_such(self.name, "update")

    async def patch(self, changes: Mapping[str, Any], *, request_id: str | None = None) -> int:
        """Raise `UnsupportedOperationError`: save the new state with its embedding instead."""
        raise no_such(self.name, "patch")

    def watch(self) -> AsyncIterator[Snapshot[S]]:
        """Raise `UnsupportedOperationError`: search instead."""
        raise no_such(self.name, "watch")

    def at(self, path: str) -> NoReturn:
        """Raise `UnsupportedOperationError`: save the new state with its embedding instead."""
        raise no_such(self.name, "at")

    def transaction(self) -> NoReturn:
        """Raise `UnsupportedOperationError`: `save_many` is all or nothing."""
        raise no_such(self.name, "transaction")

    def for_update(self, *, lease: float = 30.0) -> NoReturn:
        """Raise `UnsupportedOperationError`: save with ``if_version`` instead."""
        raise no_such(self.name, "for_update")

    async def _checked(self, cell: VectorCell, id: Id) -> Id:
        await cell.ready()
        from dgents.backends.vector_entries import check_id  # needs numpy

        try:
            return check_id(id)
        except StateError as error:
            raise cell.named(error) from None

    def _vectors(self) -> VectorCell:
        cell = self._live()
        assert isinstance(cell, VectorCell)
        return cell
