"""What a vector store holds, and how the changes in its journal are applied to it when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgents.backends.vector_change import unpack_record
from dgents.backends.vector_states import Id, States
from dgents.runtime.contract import Request

if TYPE_CHECKING:
    from dgents.backends.vector_index import VectorIndex

_AT_ONCE = 4096  # vectors


@dataclass
class Contents:
    """The entries of a vector store, and what is known of the newest change."""

    index: VectorIndex
    states: States
    version: int = 0
    epoch: int = 0
    saved_at: float = 0.0
    next_id: int = 1


class Replay:
    """Applies changes in order, many upserts at a time: one by one they would take ten times as long.

    Args:
        lift: brings a state of an older schema version to ``schema``.
    """

    def __init__(self, contents: Contents, lift: Callable[[bytes, int], bytes], schema: int) -> None:
        self._contents = contents
        self._lift = lift
        self._schema = schema
        self._ids: list[Id] = []
        self._states: list[bytes] = []
        self._vectors: list[memoryview] = []

    def add(self, number: int, record: bytes) -> list[Request]:
        """Take over one change of the journal, and return the request ids in it.

        Raises:
            ValueError: it is none, or not number ``number``.
        """
        contents = self._contents
        front, change = unpack_record(record)
        if front.version != number or number != contents.version + 1:
            raise ValueError(f"it says that it is change {front.version}")
        contents.version, contents.epoch, contents.saved_at = front.version, front.epoch, front.saved_at
        if change.states is None:
            self.apply()
            contents.index.delete(change.ids)
            contents.states.delete(change.ids)
        else:
            self._ids += change.ids
            self._states += [self._lift(state, front.schema) for state in change.states]
            self._vectors.append(change.vectors)
            contents.next_id = max(contents.next_id, following(change.ids))
            if len(self._ids) >= _AT_ONCE:
                self.apply()
        return [Request(id, number) for id in front.requests]

    def apply(self) -> None:
        """Apply the upserts that were gathered."""
        if not self._ids:
            return
        import numpy as np  # an optional dependency; it was imported with the index

        index = self._contents.index
        matrix = np.frombuffer(b"".join(self._vectors), "<f4").reshape(len(self._ids), index.dimension)
        index.upsert(self._ids, matrix)
        self._contents.states.set(self._ids, self._states)
        self._ids, self._states, self._vectors = [], [], []


def following(ids: list[Id]) -> int:
    """Return a generated id that comes after all of these."""
    return max((id for id in ids if isinstance(id, int)), default=0) + 1
