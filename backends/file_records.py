"""Chains of versions, some of which are stored as the change from the version before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from dgents.runtime.codec import Codec
from dgents.runtime.contract import Record
from dgents.runtime.errors import StateCorruptionError, StateNotFoundError
from dgents.runtime.patch import apply_patch

# What was stored was within the bounds of the actor's own codec: these only have to be as wide.
_CODEC: Codec[Any] = Codec(max_bytes=2**32, max_depth=768)


def is_delta(record: Record) -> bool:
    """Say whether a record holds only the change from the version before."""
    return record.data is None and record.delta is not None


class Chain:
    """Follows versions in order and makes each one whole again; decodes and encodes only where it must."""

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        self._tree: Any = None  # the state of `_record`, where that is a delta

    def feed(self, record: Record) -> None:
        """Go on to the next version.

        Raises:
            StateCorruptionError: it is a change, and there is nothing that it fits.
        """
        if is_delta(record):
            assert record.delta is not None
            before = self._record
            if before is None or (not is_delta(before) and before.data is None):
                raise StateCorruptionError(f"version {record.version} is a change to a state that isn't there")
            if not is_delta(before):
                assert before.data is not None
                self._tree = _CODEC.to_tree(before.data)
            try:
                apply_patch(self._tree, record.delta)
            except StateNotFoundError as error:
                raise StateCorruptionError(f"version {record.version} does not fit: {error}") from error
        self._record = record

    def current(self) -> Record:
        """Return the version that was fed last, with its state."""
        assert self._record is not None
        if is_delta(self._record):
            return replace(self._record, data=_CODEC.from_tree(self._tree), delta=None)
        return self._record if self._record.delta is None else replace(self._record, delta=None)


def make_whole(records: Iterable[Record], before: Record | None = None) -> list[Record]:
    """Return ``records``, which follow ``before``, each with its state."""
    chain, whole = Chain(before), []
    for record in records:
        chain.feed(record)
        whole.append(chain.current())
    return whole


def newest(records: Sequence[Record], limit: int) -> Sequence[Record]:
    """Return the newest ``limit`` records, and before them what they are changes of."""
    start = max(0, len(records) - limit)
    while start > 0 and is_delta(records[start]):
        start -= 1
    return records[start:]
