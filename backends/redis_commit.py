"""One batch of writes: packed into few script calls, and each of them answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgpack

from dgents.backends.redis_errors import code_of, nonsense, translate
from dgents.backends.redis_record import decode_header, torn
from dgents.backends.redis_url import RedisPlace
from dgents.runtime.contract import Write
from dgents.runtime.errors import DgentError, OwnershipLostError, StateCorruptionError, StorageError

if TYPE_CHECKING:
    from dgents.backends.redis import RedisBackend

_KEYS_A_CALL = 200
_BYTES_A_CALL = 1 << 20


class CommitBatch:
    """The writes of one commit and what became of each.

    Attributes:
        answers: None for what is written, an error for what is refused.
        todo: the numbers of the writes that are still to be sent.
        codes: the server's codes of its refusals (`READONLY`, `OOM`, ...).
    """

    def __init__(self, writes: Sequence[Write], place: RedisPlace, *, one_slot_a_call: bool) -> None:
        self._writes = writes
        self._backends = [cast("RedisBackend", write.backend) for write in writes]
        self._place = place
        self._one_slot_a_call = one_slot_a_call
        self._members: list[list[int]] = []
        self.answers: list[DgentError | None] = [None] * len(writes)
        self.todo = list(range(len(writes)))
        self.codes: set[str | None] = set()

    def strangers(self) -> list[RedisBackend]:
        """Return the backends whose write builds on a version that they have not seen."""
        return [
            backend
            for backend, write in zip(self._backends, self._writes, strict=True)
            if not backend.fence.knows(write.base)
        ]

    def learn(self, strangers: list[RedisBackend], values: Sequence[bytes | Exception | None]) -> None:
        """Take note of what is stored for the `strangers`, and refuse what does not build on it."""
        found = dict(zip(strangers, values, strict=True))
        for i in self.todo:
            backend, write = self._backends[i], self._writes[i]
            if backend not in found:
                continue
            value = found[backend]
            try:
                if isinstance(value, Exception):
                    raise value
                backend.fence.see(decode_header(value, backend.key) if value is not None else None)
                if not backend.fence.knows(write.base):
                    raise backend.fence.conflict(write)
            except DgentError as error:
                self.answers[i] = error
        self.todo = [i for i in self.todo if self.answers[i] is None]

    def calls(self) -> list[tuple[Any, ...]]:
        """Return what the script is called with: number of keys, keys, and one packed argument."""
        calls: list[tuple[Any, ...]] = []
        self._members = []
        for chunk in self._chunks():
            keys: list[bytes] = []
            packed: list[Any] = []
            begun = size = 0
            for n, i in enumerate(chunk, 1):
                backend = self._backends[i]
                expected, value, extras = backend.fence.pack(self._writes[i])
                own = backend.keys
                keys += (own.state,) if isinstance(extras, int) else (own.state, own.history, own.requests)
                packed += (expected, value, extras)
                size += len(value)
                if n == len(chunk) or n - begun == _KEYS_A_CALL or size >= _BYTES_A_CALL:
                    # Redis unpacks MessagePack's first edition: one type for text and bytes.
                    calls.append((len(keys), *keys, msgpack.packb(packed, use_bin_type=False)))
                    self._members.append(chunk[begun:n])
                    keys, packed, begun, size = [], [], n, 0
        return calls

    def _chunks(self) -> Iterator[list[int]]:
        if not self._one_slot_a_call:
            yield self.todo
            return
        slots: dict[int, list[int]] = {}
        for i in self.todo:
            slots.setdefault(self._backends[i].keys.slot, []).append(i)
        yield from slots.values()

    def take(self, replies: Sequence[Any]) -> None:
        """Answer the writes by the replies to `calls`; what has to be sent once more is `todo` afterwards.

        Raises:
            StorageError: a reply does not tell what was written.
        """
        self.todo = []
        for members, reply in zip(self._members, replies, strict=True):
            if isinstance(reply, Exception):
                self._refuse_all(members, reply)
                continue
            if not isinstance(reply, list) or len(reply) % 3:
                raise nonsense(self._place, "unknown")
            if not reply:
                for i in members:
                    self._backends[i].fence.wrote()
                continue
            refused = {reply[n] - 1: (reply[n + 1], reply[n + 2]) for n in range(0, len(reply), 3)}
            for n, i in enumerate(members):
                if n in refused:
                    self._judge(i, *refused[n])
                else:
                    self._backends[i].fence.wrote()

    def _refuse_all(self, members: list[int], reply: Exception) -> None:
        self.codes.add(code_of(reply))
        error = translate(reply, self._place, outcome="unknown")
        if error.outcome == "unknown":
            raise error
        for i in members:
            self._backends[i].fence.refused()
            self.answers[i] = translate(reply, self._place, outcome="rolled_back")

    def _judge(self, i: int, is_error: int, found: bytes) -> None:
        backend = self._backends[i]
        if is_error:
            text = found.decode("utf-8", "replace")
            backend.fence.refused()
            self.codes.add(code_of(text))
            self.answers[i] = refused_value(text, backend.key, self._place)
            return
        verdict = backend.fence.judge(self._writes[i], found)
        if verdict == "again":
            self.todo.append(i)
        else:
            self.answers[i] = verdict

    def crash(self) -> DgentError | None:
        """Return the error that an owner has to recover from: its memory is ahead of what is stored.

        That its ownership is lost is an answer; that the server refused or lost writes is a failure of the
        store.
        """
        for backend, answer in zip(self._backends, self.answers, strict=True):
            is_failure = isinstance(answer, StorageError) and not isinstance(answer, OwnershipLostError)
            if is_failure and backend.ownership == "exclusive":
                return answer
        return None

    def give_up(self) -> None:
        """Refuse what could not be written because others keep changing it."""
        for i in self.todo:
            self.answers[i] = self._backends[i].fence.conflict(self._writes[i])


def refused_value(error: Exception | str, key: str, place: RedisPlace) -> DgentError:
    """Return the typed error for one key that the server would not read or write."""
    text = str(error)
    if "TORN" in text or "equal or smaller than the target stream" in text:
        return torn(key, "a part of it is gone: the state itself, its history or its request ids")
    if "WRONGTYPE" in text:
        return StateCorruptionError(
            f"the Redis keys of {key!r} hold another type of value than dgents writes",
            path=key,
            key=key,
            hint="it was left as it is; move it away, or give the agent another key=",
        )
    return translate(error, place, outcome="rolled_back")
