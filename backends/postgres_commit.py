"""One batch of writes: packed into few statements, and each of them answered."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dgents.backends.postgres_arrays import Array, Blobs, Floats, Integers, Texts
from dgents.backends.postgres_fence import Head, Sent
from dgents.backends.postgres_tables import REQUESTS_KEPT, Parts
from dgents.backends.sqlite_tables import to_request_row, to_row
from dgents.runtime.contract import Record, Request, Write
from dgents.runtime.errors import (
    DgentError,
    OwnershipLostError,
    StateSerializationError,
    StateTooLargeError,
    StorageError,
)

if TYPE_CHECKING:
    from dgents.backends.postgres import PostgresBackend

LARGEST_STATE = 256 << 20  # bytes: a row of up to 1 GiB is copied several times on its way
_ROWS_A_STATEMENT = 2000
_BYTES_A_STATEMENT = 32 << 20
NOTICE_SIZE = 16  # bytes: the digest of a key, the mark of a write
_NOTICES_A_PAYLOAD = 370  # of which PostgreSQL takes 8,000 bytes

_COLUMNS: dict[str, Callable[[Sequence[Any]], Array]] = {
    "key": Texts.of,
    "mark": Integers.of,
    "new": Integers.of,
    "version": Integers.of,
    "head_epoch": Integers.of,
    "epoch": Integers.of,
    "lowest": Integers.of,
    "oldest": Integers.of,
    "requests": Integers.of,
    "timestamp": Floats.of,
    "schema": Integers.of,
    "checksum": Integers.of,
    "state": Blobs.of,
}
_EXTRAS: dict[str, Callable[[Sequence[Any]], Array]] = {
    **{f"x_{name}": _COLUMNS[name] for name in ("key", "version", "epoch", "timestamp", "schema", "checksum", "state")},
    "x_mark": Integers.of,
}
_REQUESTS: dict[str, Callable[[Sequence[Any]], Array]] = {
    "q_key": Texts.of,
    "q_number": Integers.of,
    "q_id": Blobs.of,
    "q_version": Integers.of,
    "q_checksum": Integers.of,
    "q_result": Blobs.of,
}


class Statement(NamedTuple):
    """One statement's part of a batch: the numbers of its writes, their table, and the parameters."""

    members: list[int]
    table: str
    parts: Parts
    values: dict[str, Array]


class CommitBatch:
    """The writes of one commit, by table and key, and what became of each.

    Attributes:
        answers: None for what is written, an error for what is refused.
        todo: the numbers of the writes that are not refused, in the order in which heads are locked: two processes
            that write the same states never wait for each other in a circle.
    """

    def __init__(self, writes: Sequence[Write]) -> None:
        self._writes = writes
        self._backends = [cast("PostgresBackend", write.backend) for write in writes]
        self._keys = [backend.key.encode() for backend in self._backends]
        self.answers: list[DgentError | None] = [_unfit(write) for write in writes]
        self.todo = sorted(
            (i for i, answer in enumerate(self.answers) if answer is None),
            key=lambda i: (self._backends[i].table, self._keys[i]),
        )

    def strangers(self) -> list[PostgresBackend]:
        """Return the backends whose write builds on a version that they have not seen."""
        return [self._backends[i] for i in self.todo if not self._backends[i].fence.knows(self._writes[i].base)]

    def refuse_strangers(self) -> None:
        """Refuse what does not build on what is stored, now that every backend has looked."""
        for i in self.todo:
            fence, base = self._backends[i].fence, self._writes[i].base
            if not fence.knows(base):
                assert fence.seen is not None, "every stranger has looked"
                self.answers[i] = fence.judge(base, fence.seen)
        self.todo = [i for i in self.todo if self.answers[i] is None]

    def schemas(self) -> set[tuple[str, int]]:
        """Return the tables and schema versions that are written."""
        return {(self._backends[i].table, self._writes[i].records[-1].schema) for i in self.todo}

    def statements(self) -> list[Statement]:
        """Return what is to be executed, in one transaction; the marks of the writes are drawn here."""
        return [self._statement(chunk) for chunk in self._chunks()]

    def take(self, statements: Sequence[Statement], refused: Sequence[set[str]]) -> list[int]:
        """Note what is stored, and return the numbers of the writes that were refused; ``refused`` has their keys."""
        lost = []
        for statement, keys in zip(statements, refused, strict=True):
            for i in statement.members:
                if keys and self._backends[i].key in keys:
                    lost.append(i)
                else:
                    self._backends[i].fence.wrote()
        return lost

    def refuse(self, i: int, head: Head) -> None:
        """Refuse a write in whose place ``head`` was found."""
        self.answers[i] = self._backends[i].fence.judge(self._writes[i].base, head)

    def singles(self) -> Iterator[tuple[int, CommitBatch]]:
        """Yield a batch for each write that is still to be done, with its number in this one."""
        for i in self.todo:
            yield i, CommitBatch([self._writes[i]])

    def crash(self) -> DgentError | None:
        """Return the error that an owner has to recover from: its memory is ahead of what is stored.

        That its ownership is lost is an answer; that the server lost writes is a failure of the store.
        """
        for backend, answer in zip(self._backends, self.answers, strict=True):
            is_failure = isinstance(answer, StorageError) and not isinstance(answer, OwnershipLostError)
            if is_failure and backend.ownership == "exclusive":
                return answer
        return None

    def roll_back(self) -> None:
        """Note that nothing is stored."""
        for i in self.todo:
            self._backends[i].fence.refuse()

    def refuse_all(self, error: StorageError) -> None:
        """Refuse what the server would not take, and would not take the next time."""
        for i in self.todo:
            self.answers[i] = error

    def place(self, i: int) -> tuple[str, str]:
        """Return the table and the key of a write."""
        return self._backends[i].table, self._backends[i].key

    def _chunks(self) -> Iterator[list[int]]:
        """Divide the writes by table, by size, and so that no key is twice in a statement."""
        chunk: list[int] = []
        keys: set[bytes] = set()
        size = 0
        for i in self.todo:
            written = sum(len(record.data or b"") for record in self._writes[i].records)
            is_full = size + written > _BYTES_A_STATEMENT or len(chunk) == _ROWS_A_STATEMENT
            is_other = bool(chunk) and self._backends[chunk[0]].table != self._backends[i].table
            if chunk and (is_full or is_other or self._keys[i] in keys):
                yield chunk
                chunk, keys, size = [], set(), 0
            chunk.append(i)
            keys.add(self._keys[i])
            size += written
        if chunk:
            yield chunk

    def _statement(self, chunk: list[int]) -> Statement:
        heads: list[tuple[Any, ...]] = []
        extras: list[tuple[Any, ...]] = []
        requests: list[tuple[Any, ...]] = []
        notices: list[bytes] = []
        for i in chunk:
            backend, write, key = self._backends[i], self._writes[i], self._keys[i]
            before, after = sent = backend.fence.send(write)
            _, version, epoch, saved_at, schema, checksum, data = to_row(backend.key, write.records[-1])
            place = (key, before.mark, after.mark, version, after.epoch, epoch, before.oldest, after.oldest)
            heads.append((*place, after.requests, saved_at, schema, checksum, data))
            if len(write.records) > 1:
                extras += ((key, *to_row(backend.key, record)[1:], after.mark) for record in _earlier(write, sent))
            if write.requests:
                requests += _request_rows(backend.key, key, before.requests + 1, write.requests)
            if backend.ownership == "shared":
                notices.append(backend.digest + after.mark.to_bytes(8))
        columns = list(zip(*heads, strict=True))
        values = {name: make(column) for (name, make), column in zip(_COLUMNS.items(), columns, strict=True)}
        begins = any(mark == 0 for mark in columns[1])
        trims = any(lowest < oldest for lowest, oldest in zip(columns[6], columns[7], strict=True))
        if extras:
            values |= _arrays(_EXTRAS, extras)
        if requests:
            values |= _arrays(_REQUESTS, requests)
        if notices:
            values["notices"] = Texts.of(_payloads(notices))
        parts = Parts(begins, bool(extras), trims, bool(requests), bool(notices))
        return Statement(chunk, self._backends[chunk[0]].table, parts, values)


def digest(table: str, key: str) -> bytes:
    """Return what stands for a state in a notification, whose size is bounded."""
    return blake2b(f"{table.rpartition('.')[2]}\0{key}".encode(), digest_size=8).digest()


def _earlier(write: Write, sent: Sent) -> Iterator[Record]:
    """Yield the versions before the last one of a write that its own bound does not drop again at once."""
    return (record for record in write.records[:-1] if record.version >= sent.after.oldest)


def _request_rows(key: str, encoded: bytes, first: int, requests: Sequence[Request]) -> Iterator[tuple[Any, ...]]:
    for number, request in list(enumerate(requests, first))[-REQUESTS_KEPT:]:
        _, _, id, version, checksum, result = to_request_row(key, number, request)
        yield encoded, number, id.encode(), version, checksum, result


def _arrays(columns: dict[str, Callable[[Sequence[Any]], Array]], rows: list[tuple[Any, ...]]) -> dict[str, Array]:
    return {name: make(column) for (name, make), column in zip(columns.items(), zip(*rows, strict=True), strict=True)}


def _payloads(notices: list[bytes]) -> list[bytes]:
    step = _NOTICES_A_PAYLOAD
    return [b64encode(b"".join(notices[i : i + step])) for i in range(0, len(notices), step)]


def _unfit(write: Write) -> DgentError | None:
    """Return why a write can't be stored at all."""
    for record in write.records:
        if record.data is not None and len(record.data) > LARGEST_STATE:
            return StateTooLargeError(
                f"the state {write.backend.key!r} is {len(record.data):,} bytes, PostgreSQL gets {LARGEST_STATE:,}",
                key=write.backend.key,
                size=len(record.data),
                limit=LARGEST_STATE,
                hint="split the state",
            )
    try:
        for request in write.requests:
            request.id.encode()
    except UnicodeEncodeError:
        return StateSerializationError(
            "a request id has a lone surrogate, which can't be stored", key=write.backend.key
        )
    return None
