"""A chain of hashes over a stream: what was changed, removed or reordered is found, and where.

    link(n) = SHA-256( link(n-1) + version u64 + saved_at f64 + schema u32 + encoded tag + encoded event )

big-endian; ``link(0)`` is 32 zero bytes. The epoch is not part of it: it names who wrote, and a write that is
repeated after a failure gets a newer one. A shorter chain is a valid chain, so the *head*, the number and link of the
newest event, is kept beside the log (`chain_head`). Whoever can write both can make them agree: a key that is kept
elsewhere (ed25519, `Seal`) shows that too, except for a stream put back as a whole to what it once was.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import msgspec

from dgents.backends.event_codec import StoredEvent
from dgents.runtime.errors import StateCorruptionError

GENESIS = bytes(32)
LEFT_AS_IT_IS = "the log was left as it is; compare it with a copy"
_NUMBERS = struct.Struct(">32sQdI")
_encode = msgspec.msgpack.Encoder().encode
_sha256 = hashlib.sha256


def link_of(before: bytes, version: int, saved_at: float, schema: int, head: bytes, payload: bytes) -> bytes:
    """Return the link of an event to the one before; ``head`` is its encoded tag."""
    digest = _sha256(_NUMBERS.pack(before, version, saved_at, schema))
    digest.update(head + payload)
    return digest.digest()


class Links:
    """Recomputes the links of a stream, chunk by chunk.

    Args:
        actor: the name of the stream, for errors.
        version, link: of the event before the first one.
    """

    def __init__(self, actor: str, version: int, link: bytes) -> None:
        self.actor = actor
        self.version = version
        self.link = link
        self._heads: dict[str, bytes] = {}

    def follow(self, chunk: Sequence[StoredEvent]) -> None:
        """Check the links of the next events.

        Raises:
            StateCorruptionError: ``event`` is the first one that is not what was appended in its place.
        """
        link, heads, pack = self.link, self._heads, _NUMBERS.pack
        for stored in chunk:
            head = heads.get(stored.tag)
            if head is None:
                head = heads[stored.tag] = _encode(stored.tag)
            digest = _sha256(pack(link, stored.version, stored.saved_at, stored.schema))
            digest.update(head)
            digest.update(stored.payload)
            link = digest.digest()
            if link != stored.link:
                raise broken(self.actor, stored.version, "it, or one before it, is not what was appended in its place")
        if chunk:
            self.version, self.link = chunk[-1].version, link


def broken(actor: str, event: int, what: str) -> StateCorruptionError:
    """Return the error for a stream that is not what was appended."""
    return StateCorruptionError(
        f"event {event} of the stream {actor!r} is not to be trusted: {what}",
        actor=actor,
        event=event,
        hint=LEFT_AS_IT_IS,
    )
