"""Makes and checks what names a stream from beside its events: heads, and with a key signatures.

What is signed is the MessagePack of a head, or of ``["event", key, version, link]`` for the newest event of a commit,
or of ``["snapshot", key, digest]``: none can stand for another. ``key`` is the SHA-256 of what the stream is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from dgents.backends.chain import LEFT_AS_IT_IS, broken
from dgents.backends.event_codec import StoredEvent
from dgents.runtime.errors import StateCorruptionError, UnsupportedOperationError

_encode = msgspec.msgpack.Encoder().encode


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The newest event of a chain, and the newest one that `compact` removed.

    Attributes:
        before: the version in the head that stays beside this one; its own where it stands alone.
    """

    key: bytes
    version: int
    link: bytes
    floor: int
    floor_link: bytes
    before: int


class Sealed(msgspec.Struct, array_like=True, frozen=True):
    """An encoded head and its signature."""

    head: bytes
    signature: bytes | None


class Seal:
    """What only the owner of one stream can make, if it has a key.

    Args:
        key: what the stream is called in its log.
        actor: its name, for errors.
        signing_key: an ed25519 private key as 32 bytes; None leaves everything unsigned.

    Raises:
        UnsupportedOperationError: ``cryptography`` is not installed.
    """

    def __init__(self, key: str, actor: str, signing_key: bytes | None) -> None:
        self.actor = actor
        self._key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        self._sign: Callable[[bytes], bytes] | None = None
        self._check: Callable[[bytes, bytes], Any] | None = None
        if signing_key is not None:
            self._sign, self._check = _ed25519(signing_key)

    @property
    def signs(self) -> bool:
        """Whether there is a key."""
        return self._sign is not None

    def make(self, version: int, link: bytes, floor: int, floor_link: bytes, before: int | None = None) -> bytes:
        """Return the head to keep beside the log."""
        head = _encode(Head(self._key, version, link, floor, floor_link, version if before is None else before))
        return _encode(Sealed(head, self.sign(head)))

    def read(self, sealed: bytes) -> Head:
        """Return a kept head.

        Raises:
            StateCorruptionError: it is not one, not of this stream, or not signed with the key.
        """
        outer, head = _unseal(self.actor, sealed)
        if head.key != self._key:
            raise broken_head(self.actor, "it is the head of another stream")
        self._verify(outer.signature, outer.head, lambda what: broken_head(self.actor, what))
        return head

    def sign_event(self, version: int, link: bytes) -> bytes | None:
        """Return the signature of the newest event of a commit."""
        return self.sign(self._event(version, link))

    def check_event(self, stored: StoredEvent) -> None:
        """Check the signature of an event that no head names yet.

        Raises:
            StateCorruptionError: it was not appended by who has the key.
        """
        message = self._event(stored.version, stored.link or b"")
        self._verify(stored.signature, message, lambda what: broken(self.actor, stored.version, what))

    def sign_snapshot(self, content: bytes) -> bytes | None:
        """Return the signature of an encoded snapshot."""
        return self.sign(self._snapshot(content))

    def check_snapshot(self, content: bytes, signature: bytes | None, version: int) -> None:
        """Check the signature of a snapshot.

        Raises:
            StateCorruptionError: it was not made by who has the key.
        """

        def forged(what: str) -> StateCorruptionError:
            return StateCorruptionError(
                f"the snapshot after event {version} of the stream {self.actor!r} can't be trusted: {what}",
                actor=self.actor,
                hint=LEFT_AS_IT_IS,
            )

        self._verify(signature, self._snapshot(content), forged)

    def sign(self, message: bytes) -> bytes | None:
        """Return a signature, None without a key."""
        return self._sign(message) if self._sign is not None else None

    def _event(self, version: int, link: bytes) -> bytes:
        return _encode(("event", self._key, version, link))

    def _snapshot(self, content: bytes) -> bytes:
        return _encode(("snapshot", self._key, hashlib.sha256(content).digest()))

    def _verify(self, signature: bytes | None, message: bytes, refusal: Callable[[str], StateCorruptionError]) -> None:
        if self._check is None:
            return
        if signature is None:
            raise refusal("it is not signed")
        try:
            self._check(signature, message)
        except Exception as error:
            raise refusal("its signature is not of this key") from error


def read_head(actor: str, sealed: bytes) -> Head:
    """Return a kept head, whichever stream it is of and whoever signed it.

    Raises:
        StateCorruptionError: it is none.
    """
    return _unseal(actor, sealed)[1]


def broken_head(actor: str, what: str) -> StateCorruptionError:
    """Return the error for a head that says nothing that can be relied on."""
    return StateCorruptionError(
        f"the head of the stream {actor!r} can't be trusted: {what}", actor=actor, hint=LEFT_AS_IT_IS
    )


def _unseal(actor: str, sealed: bytes) -> tuple[Sealed, Head]:
    try:
        outer = msgspec.msgpack.decode(sealed, type=Sealed)
        return outer, msgspec.msgpack.decode(outer.head, type=Head)
    except msgspec.DecodeError as error:
        raise broken_head(actor, f"it can't be read ({error})") from error


def _ed25519(key: bytes) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], Any]]:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise UnsupportedOperationError(
            "signing_key= needs a library that is not installed", hint="pip install 'dgents[sign]'"
        ) from error
    private = Ed25519PrivateKey.from_private_bytes(key)
    return private.sign, private.public_key().verify
