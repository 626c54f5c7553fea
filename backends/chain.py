"""A chain of hashes over a stream: what was changed, removed or reordered is found, and where.

    link(n) = SHA-256( link(n-1) + version u64 + saved_at f64 + schema u32 + encoded tag + encoded event )

big-endian; ``link(0)`` is 32 zero bytes. The epoch is not part of it: it names who wrote, and a write that is
repeated after a failure gets a newer one. A shorter chain is a valid chain, so the *head*, the number and link of the
newest event, is kept beside the log; it also names the stream and what `compact` removed. Whoever can write both can
make them agree: a head signed with a key that is kept elsewhere (ed25519) shows that too, except for a stream and its
head put back together to what both once were.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dgents.backends.event_codec import StoredEvent
from dgents.runtime.errors import StateCorruptionError, UnsupportedOperationError

GENESIS = bytes(32)
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


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The newest event of a chain, and the newest one that `compact` removed."""

    key: bytes  # SHA-256 of the stream's key
    version: int
    link: bytes
    floor: int
    floor_link: bytes


class Sealed(msgspec.Struct, array_like=True, frozen=True):
    """An encoded head and its signature."""

    head: bytes
    signature: bytes | None


class Seal:
    """Makes and checks the heads of one stream.

    Args:
        key: what the stream is called in its log.
        actor: its name, for errors.
        signing_key: an ed25519 private key as 32 bytes; None leaves heads unsigned.

    Raises:
        UnsupportedOperationError: ``cryptography`` is not installed.
    """

    def __init__(self, key: str, actor: str, signing_key: bytes | None) -> None:
        self.actor = actor
        self._key = _sha256(key.encode("utf-8", "surrogatepass")).digest()
        self._sign: Callable[[bytes], bytes] | None = None
        self._check: Callable[[bytes, bytes], Any] | None = None
        if signing_key is not None:
            self._sign, self._check = _ed25519(signing_key)

    def make(self, version: int, link: bytes, floor: int, floor_link: bytes) -> bytes:
        """Return the head to keep beside the log."""
        head = _encode(Head(self._key, version, link, floor, floor_link))
        return _encode(Sealed(head, self._sign(head) if self._sign is not None else None))

    def read(self, sealed: bytes) -> Head:
        """Return a kept head.

        Raises:
            StateCorruptionError: it is not one, not of this stream, or not signed with the key.
        """
        outer, head = _unseal(self.actor, sealed)
        if head.key != self._key:
            raise _broken_head(self.actor, "it is the head of another stream")
        if self._check is not None:
            if outer.signature is None:
                raise _broken_head(self.actor, "it is not signed")
            try:
                self._check(outer.signature, outer.head)
            except Exception as error:
                raise _broken_head(self.actor, "its signature is not of this key") from error
        return head


def read_head(actor: str, sealed: bytes) -> Head:
    """Return a kept head, whichever stream it is of and whoever signed it.

    Raises:
        StateCorruptionError: it is none.
    """
    return _unseal(actor, sealed)[1]


def check_head(actor: str, head: Head, version: int, link: bytes) -> None:
    """Check that a stream which ends at ``version`` has every event up to its head.

    Raises:
        StateCorruptionError: events were cut off at the end; ``event`` is the first of them. Or another one is in the
            head's place.
    """
    if head.version > version:
        what = (
            f"events {version + 1} to {head.version} were cut off" if head.version > version + 1 else "it was cut off"
        )
        raise broken(actor, version + 1, what)
    if head.version == version and head.link != link:
        raise broken(actor, version, "it is not the one that the head names")


def broken(actor: str, event: int, what: str) -> StateCorruptionError:
    """Return the error for a stream that is not what was appended."""
    return StateCorruptionError(
        f"event {event} of the stream {actor!r} is not to be trusted: {what}",
        actor=actor,
        event=event,
        hint="the log was left as it is; compare it with a copy",
    )


def _unseal(actor: str, sealed: bytes) -> tuple[Sealed, Head]:
    try:
        outer = msgspec.msgpack.decode(sealed, type=Sealed)
        return outer, msgspec.msgpack.decode(outer.head, type=Head)
    except msgspec.DecodeError as error:
        raise _broken_head(actor, f"it can't be read ({error})") from error


def _broken_head(actor: str, what: str) -> StateCorruptionError:
    return StateCorruptionError(
        f"the head of the stream {actor!r} can't be trusted: {what}",
        actor=actor,
        hint="the log was left as it is; compare it with a copy",
    )


def _ed25519(key: bytes) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], Any]]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise UnsupportedOperationError(
            "signing_key= needs a library that is not installed", hint="pip install 'dgents[sign]'"
        ) from error
    private = Ed25519PrivateKey.from_private_bytes(key)
    return private.sign, private.public_key().verify
