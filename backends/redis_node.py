"""The client of one server, or of the master that sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import ResponseError

from dgents.backends.redis_client import Command, client_options
from dgents.backends.redis_errors import FAILURES, nonsense, translate
from dgents.backends.redis_url import RedisPlace

_MAX_CONNECTIONS = 8
_TRUSTED_FOR = 1.0  # seconds after its last reply in which a connection is used without another look at it


class ServerClient:
    """One server, or the master that sentinels name."""

    is_cluster = False

    def __init__(self, place: RedisPlace) -> None:
        self.place = place
        options = client_options(place)
        self.timeout: float = options["socket_timeout"]
        self._deadline = self.timeout + options["socket_connect_timeout"]
        if place.kind == "sentinel":
            self._redis, self._sentinels = _of_sentinels(place, options)
        else:
            # redis-py's own limits would cost a task for each command sent: `run` has one for all.
            options["socket_timeout"] = None
            pool = BlockingConnectionPool(max_connections=_MAX_CONNECTIONS, timeout=self._deadline, **options)
            self._redis, self._sentinels = Redis(connection_pool=pool), []
        self._pool: Any = self._redis.connection_pool
        # The pool only makes connections. Its own bookkeeping costs a tenth of a round trip each time.
        self._closed = False
        self._idle: list[tuple[Any, float]] = []
        self._now = asyncio.get_running_loop().time
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS - 1)  # the subscriber has a connection of its own

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        async with self._slots:
            connection = await self._checked_out()
            try:
                async with asyncio.timeout(self.timeout) as limit:
                    await connection.send_packed_command(_packed(commands))
                    replies = [await self._reply(connection)]
                    for _ in range(len(commands) - 1):
                        limit.reschedule(self._now() + self.timeout)  # each reply has the whole time
                        replies.append(await self._reply(connection))
                    return replies
            except BaseException as error:
                # Half a reply may still be on its way: what comes next goes over a new connection.
                await connection.disconnect(nowait=True)
                if isinstance(error, FAILURES):
                    raise translate(error, self.place, outcome="unknown", waited=self.timeout) from error
                raise
            finally:
                self._idle.append((connection, self._now()))
                await self._disconnect_if_closed()

    async def _checked_out(self) -> Any:
        """Return a connection that is alive as far as one can see without a round trip."""
        try:
            if not self._idle:
                async with asyncio.timeout(self._deadline):
                    return await self._pool.get_connection()
            connection, used_at = self._idle.pop()
            if not connection.is_connected or self._now() - used_at > _TRUSTED_FOR:
                try:
                    async with asyncio.timeout(self._deadline):
                        await self._pool.ensure_connection(connection)
                except BaseException:
                    self._idle.append((connection, -_TRUSTED_FOR))
                    raise
            return connection
        except FAILURES as error:
            await self._disconnect_if_closed()
            raise translate(error, self.place, outcome="rolled_back", waited=self.timeout) from error

    async def _disconnect_if_closed(self) -> None:
        """Leave nothing open that was still being connected or used when this was closed."""
        if self._closed:
            await self._pool.disconnect()

    async def _reply(self, connection: Any) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error

    async def execute(self, command: Command) -> Any:
        return self.shape(command[0], (await self.run([command]))[0])

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        return await self.run(commands)

    def shape(self, name: str, reply: Any) -> Any:
        callback = self._redis.response_callbacks.get(name)
        if callback is None or isinstance(reply, Exception):
            return reply
        try:
            return callback(reply)
        except (TypeError, ValueError, AttributeError, LookupError):
            return nonsense(self.place, "unknown")

    async def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        cursor: Any = 0
        while True:
            (reply,) = await self.run([("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)])
            if isinstance(reply, Exception):
                raise translate(reply, self.place, outcome="rolled_back")
            if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                raise nonsense(self.place, "rolled_back")
            cursor, names = reply
            for name in names:
                yield name
            if int(cursor) == 0:
                return

    async def listener(self) -> Redis:
        return Redis(connection_pool=self._pool)

    async def drop_idle(self) -> None:
        for connection, _ in self._idle:
            await connection.disconnect()

    async def close(self) -> None:
        self._closed = True
        await self._redis.aclose()
        await self._pool.disconnect()
        for sentinel in self._sentinels:
            await sentinel.aclose()


def _packed(commands: Sequence[Command]) -> bytes:
    """Return the commands as they go over the wire. redis-py's own packer takes three times as long."""
    return b"".join([pack_command(command) for command in commands])


def _of_sentinels(place: RedisPlace, options: dict[str, Any]) -> tuple[Redis, list[Redis]]:
    """Return a client of the master that the sentinels name, and their own clients."""
    tls = options.pop("connection_class", Connection) is SSLConnection
    options = {name: value for name, value in options.items() if name not in ("host", "port")} | {"ssl": tls}
    shared = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl", "retry"))}
    manager = Sentinel(  # type: ignore[no-untyped-call]  # redis-py types only half of it
        list(place.hosts),
        sentinel_kwargs=shared | place.sentinel_options,
        **options | {"socket_timeout": None},
    )
    return manager.master_for(place.service), manager.sentinels
