"""What the store asks of a Redis: pipelines of commands, of which none is sent twice and none waits for ever.

redis-py by itself retries a command whose connection was cut, though the server may have executed it (one
INCR then counts 2). Here an error after the first byte went out says that the outcome is unknown, and whoever
wrote finds out.

Everything here runs on the asyncio loop that `Resources.run_asyncio` names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from dgents.backends.redis_scripts import Script
from dgents.backends.redis_url import RedisPlace

Command = tuple[Any, ...]

_SOCKET_TIMEOUT = 5.0  # seconds for one reply, and for connecting


class Client(Protocol):
    """One server, a sentinel's master, or a cluster."""

    place: RedisPlace
    timeout: float
    is_cluster: bool

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send the commands as one pipeline and return their replies, in order; an error reply is returned.

        Raises:
            StorageError: there was no connection (``rolled_back``), or it failed in between (``unknown``).
        """
        ...

    async def execute(self, command: Command) -> Any:
        """Send one command and return its reply as redis-py shapes it; an error reply is returned."""
        ...

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to questions about the server itself, in whatever shape."""
        ...

    def shape(self, name: str, reply: Any) -> Any:
        """Return a raw reply as redis-py shapes it for the command ``name``."""
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        """Yield the names that match, some perhaps twice."""
        ...

    async def listener(self) -> Redis:
        """Return a client to subscribe with; the caller closes it."""
        ...

    async def drop_idle(self) -> None:
        """Forget the idle connections: the server behind the name may be another by now."""
        ...

    async def close(self) -> None: ...


async def call_script(
    client: Client, script: Script, calls: Sequence[Command], after: Sequence[Command] = ()
) -> tuple[list[Any], list[Any]]:
    """Run a script for each of ``calls`` (number of keys, keys, arguments), then the commands ``after``.

    A server that does not have the script says so before it does anything; only then the source is sent.

    Returns:
        the replies to the calls, and those to ``after``.
    """
    replies = await client.run([*(("EVALSHA", script.sha, *call) for call in calls), *after])
    missing = [i for i, reply in enumerate(replies[: len(calls)]) if isinstance(reply, NoScriptError)]
    if missing:
        again = await client.run([*(("EVAL", script.source, *calls[i]) for i in missing), *after])
        for i, reply in zip(missing, again, strict=False):
            replies[i] = reply
        replies[len(calls) :] = again[len(missing) :]
    return replies[: len(calls)], replies[len(calls) :]


def client_options(place: RedisPlace) -> dict[str, Any]:
    """Return what the URL says, and what is decided here, as redis-py names it."""
    options: dict[str, Any] = dict(parse_url(place.base))
    for name in (
        "decode_responses",
        "max_connections",
        "timeout",
    ):  # states are bytes; the rest is decided here
        options.pop(name, None)
    options.setdefault("socket_timeout", _SOCKET_TIMEOUT)
    options.setdefault("socket_connect_timeout", min(_SOCKET_TIMEOUT, options["socket_timeout"]))
    options["retry"] = Retry(NoBackoff(), 0)
    return options
