"""What a state is called in Redis."""

from __future__ import annotations

from binascii import crc_hqx

PREFIX = b"dgents:{"
_HISTORY, _REQUESTS = b":history", b":requests"
_PARTS = (b"", _HISTORY, _REQUESTS)


class RedisKeys:
    """The names under which one state lies: they share a hash slot, so that one script may touch them all.

    Attributes:
        state: the value itself; also the channel on which its changes are published.
        history: a stream of versions, if a history is kept.
        requests: a list of the request ids that were applied, if there are any.
        slot: the slot of a cluster that all of them are in.
    """

    __slots__ = ("history", "name", "requests", "slot", "state")

    def __init__(self, key: str) -> None:
        self.name = key
        # A brace within the key would end the hash tag too early.
        quoted = key.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        tag = quoted.encode("utf-8", "surrogatepass")
        self.state = PREFIX + tag + b"}"
        self.history = self.state + _HISTORY
        self.requests = self.state + _REQUESTS
        self.slot = crc_hqx(tag, 0) % 16384


def key_of(name: bytes) -> str | None:
    """Return the key of which the state, its history or its request ids are under a name in Redis, or None."""
    tag, brace, part = name.partition(b"}")
    if not (tag.startswith(PREFIX) and brace and part in _PARTS):
        return None
    quoted = tag[len(PREFIX) :].decode("utf-8", "surrogatepass")
    return quoted.replace("%7D", "}").replace("%7B", "{").replace("%25", "%")
