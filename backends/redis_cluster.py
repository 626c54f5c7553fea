"""The client of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError

from dgents.backends.redis_client import Command, client_options
from dgents.backends.redis_errors import FAILURES, translate
from dgents.backends.redis_url import RedisPlace

# What is asked of states, whose replies are read as the server gave them; redis-py needs the others for itself.
_RAW = ("GET", "LRANGE", "SET", "XRANGE", "XREVRANGE", "XTRIM")


class ClusterClient:
    """A cluster; redis-py finds the node of each slot and follows the slots that move."""

    is_cluster = True

    def __init__(self, place: RedisPlace) -> None:
        self.place = place
        self._options = client_options(place)
        self.timeout: float = self._options["socket_timeout"]
        self._deadline = 2 * self.timeout + self._options["socket_connect_timeout"]
        options = {name: value for name, value in self._options.items() if name not in ("host", "port")}
        tls = options.pop("connection_class", Connection) is SSLConnection
        self._redis = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in place.hosts], ssl=tls, **options
        )
        shapes = self._redis.response_callbacks
        self._shapes = {name: shapes.pop(name) for name in _RAW if name in shapes}

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._redis.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        replies = await self._limited(pipeline.execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, FAILURES) and not isinstance(reply, ResponseError):
                raise translate(reply, self.place, outcome="unknown", waited=self.timeout) from reply
        return list(replies)

    async def execute(self, command: Command) -> Any:
        try:
            return self.shape(command[0], await self._limited(self._anywhere(command)))
        except ResponseError as error:
            return error

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.execute(command) for command in commands]

    async def _anywhere(self, command: Command) -> Any:
        try:
            return await self._redis.execute_command(*command)
        except RedisClusterException:
            # No key says where it belongs, so nothing was sent yet: any node may answer.
            node = self._redis.get_default_node()
            return await self._redis.execute_command(*command, target_nodes=node)

    async def _limited(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._deadline):
                return await work
        except ResponseError:
            raise
        except FAILURES as error:
            raise translate(error, self.place, outcome="unknown", waited=self.timeout) from error

    def shape(self, name: str, reply: Any) -> Any:
        """Return a reply as redis-py shapes it, which has done that for all commands but the `_RAW` ones."""
        shape = self._shapes.get(name)
        return reply if shape is None or isinstance(reply, Exception) else shape(reply)

    async def scan(self, pattern: bytes) -> AsyncIterator[bytes]:
        try:
            async for name in self._redis.scan_iter(match=pattern, count=1000):
                yield name
        except FAILURES as error:
            raise translate(error, self.place, outcome="rolled_back", waited=self.timeout) from error

    async def listener(self) -> Redis:
        """Connect to any node: a cluster passes each message on to all of them."""
        options = {name: value for name, value in self._options.items() if name not in ("host", "port")}
        failure: Exception = RedisConnectionError("the cluster has no nodes")
        for node in self._redis.get_nodes() or [ClusterNode(*host) for host in self.place.hosts]:
            pool = BlockingConnectionPool(host=node.host, port=node.port, max_connections=1, **options)
            redis = Redis.from_pool(pool)
            try:
                await redis.ping()
            except FAILURES as error:
                failure = error
                await redis.aclose()
            else:
                return redis
        raise failure

    async def drop_idle(self) -> None:
        """Nothing to do: redis-py looks the nodes up again by itself."""

    async def close(self) -> None:
        await self._redis.aclose()
