"""One Redis as the actors of a runtime share it: their writes, reads and commands go out together.

A batch of writes is one script call for 200 keys (or 1 MiB), all calls of a batch in one pipeline; in a
cluster it is one call for each slot. Reads and raw commands that wait at the same time share a pipeline each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from dgents.backends.batcher import Batcher
from dgents.backends.redis_client import Client, Command, call_script
from dgents.backends.redis_commit import CommitBatch, refused_value
from dgents.backends.redis_connect import connect
from dgents.backends.redis_durability import ASK, Durability, ServerFacts, confirmation, shortfall
from dgents.backends.redis_errors import FAILURES, code_of, nonsense, translate
from dgents.backends.redis_keys import RedisKeys
from dgents.backends.redis_record import blank, decode_all, decode_requests
from dgents.backends.redis_scripts import CLAIM, COMMIT, HISTORY, LOOK, READ, REQUESTS, Script
from dgents.backends.redis_url import RedisPlace
from dgents.backends.redis_watch import Subscriber
from dgents.runtime.arguments import is_encodable
from dgents.runtime.contract import Record, Request, Resources, Write
from dgents.runtime.errors import DgentError, StorageError, UnsupportedOperationError

_KEYS_A_READ = 200
_ROUNDS = 3
# A connection that many actors share can't be put into another mode by one of them.
_MODES = {
    "AUTH",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "QUIT",
    "REPLCONF",
} | {*("RESET", "SELECT", "SSUBSCRIBE", "SUBSCRIBE", "SYNC", "UNWATCH", "WATCH")}
# These may wait on the server, so they have a connection to themselves.
_BLOCKING = {"BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN"} | {
    *("WAIT", "WAITAOF", "XREAD", "XREADGROUP")
}

_WRITES_A_COMMIT = 128
_BEFORE_A_SCRIPT = {"NOSCRIPT", "LOADING", "BUSY", "NOAUTH", "WRONGPASS", "MOVED", "MASTERDOWN", "CLUSTERDOWN"}


class RedisStore:
    """A client, what its server promises, and what waits to be sent."""

    def __init__(self, client: Client, resources: Resources, durability: Durability, facts: ServerFacts) -> None:
        self.client = client
        self.durability = durability
        self.facts = facts
        self.has_warned = False
        self.subscriber = Subscriber(client, resources)
        self._resources = resources
        # The server has to give up waiting before the socket does: its answer says how far it got.
        self._confirm = confirmation(durability, facts, client.timeout * 0.8)
        # In parts, the server works beside us; a confirmation may take a second, and is asked for once for all.
        self.most_writes = None if self._confirm else _WRITES_A_COMMIT
        self._reads: Batcher[RedisKeys, bytes | None] = Batcher(self._read_together)
        self._claims: Batcher[tuple[RedisKeys, Command], bytes | None] = Batcher(self._claim_together)
        self._commands: Batcher[Command, Any] = Batcher(self._execute_together)

    @classmethod
    async def open(cls, place: RedisPlace, resources: Resources, durability: Durability) -> RedisStore:
        """Connect, and ask the server what it promises.

        Raises:
            StorageError: it can't be reached or refuses us.
        """
        client, facts = await resources.run_asyncio(_connect, place)
        return cls(client, resources, durability, facts)

    async def commit(self, writes: Sequence[Write]) -> Sequence[DgentError | None]:
        """Compare and set; see `Store.commit`.

        Raises:
            StorageError: the connection failed in between, the server did not confirm what was asked of it,
            or it
                refused or lost the writes of an exclusive owner, who has to open its state again.
        """
        batch = CommitBatch(writes, self.client.place, one_slot_a_call=self.client.is_cluster)
        strangers = batch.strangers()
        if strangers:
            batch.learn(strangers, await self._read_together([backend.keys for backend in strangers]))
        for _ in range(_ROUNDS):
            if not batch.todo:
                break
            batch.take(await self._call(COMMIT, batch.calls()))
        batch.give_up()
        if "READONLY" in batch.codes:
            # The name may lead to a new primary by now, while our connections still go to the old one.
            await self._resources.run_asyncio(self.client.drop_idle)
        crash = batch.crash()
        if crash is not None:
            raise crash
        return batch.answers

    async def read(self, keys: RedisKeys) -> bytes | None:
        """Return the value of a state; what many actors read at the same time goes out as one pipeline."""
        return await self._reads.submit(keys)

    async def read_confirmed(self, keys: RedisKeys) -> bytes | None:
        """Return the value of a state once it is as durable as this store makes its writes."""
        value, *confirmations = await self._run([("GET", keys.state), *self._confirm])
        self._check(confirmations)
        found = self._state(value, keys)
        if isinstance(found, Exception):
            raise found
        return found

    async def claim(self, keys: RedisKeys, mark: int, expected: bytes = b"*", life: float = 0) -> bytes | None:
        """Give a state a new mark and return it; what was found instead if it has not the ``expected`` stamp.

        Args:
            life: for how many seconds an absent state is kept when nothing is saved; 0: for ever.
        """
        parts = (3, keys.state, keys.history, keys.requests)
        call = (*parts, mark.to_bytes(8, "big"), blank(mark), expected, int(life * 1000))
        return await self._claims.submit((keys, call))

    async def history(self, keys: RedisKeys, count: int) -> list[Record]:
        """Return the newest ``count`` versions of a state that are kept, oldest first."""
        call = (3, keys.state, keys.history, keys.requests, count)
        value, entries = await self._ask_script(HISTORY, keys, call)
        return decode_all(keys.name, value, entries, count)[-count:]

    async def requests(self, keys: RedisKeys) -> list[Request]:
        """Return the remembered request ids of a state, oldest first."""
        return decode_requests(keys.name, *await self._ask_script(REQUESTS, keys, (2, keys.state, keys.requests)))

    async def ask(self, keys: RedisKeys, *command: Any) -> Any:
        """Return the raw reply to one command about a state.

        Raises:
            StateCorruptionError: somebody else's value is under its keys.
            StorageError: the server refused, or the connection failed.
        """
        (reply,) = await self._run([command])
        return self._value(reply, keys)

    async def execute(self, *args: Any) -> Any:
        """Run a command of the user's and return its reply, as redis-py shapes it.

        Raises:
            UnsupportedOperationError: the command would change the connection that all actors share.
            StorageError: the server refused it, or the connection failed (``outcome`` says what is known).
        """
        if not args or not isinstance(args[0], str):
            raise TypeError("execute takes the name of a Redis command, then its arguments")
        packed = [_packed(arg) for arg in args[1:]]
        name = args[0].upper()
        _packed(name)
        if name in _MODES:
            raise UnsupportedOperationError(
                f"{name} would change the connection that all actors share",
                hint="use a redis.asyncio client of your own for transactions and subscriptions",
            )
        command = (name, *packed)
        if name in _BLOCKING:
            reply = (await self._execute_together([command]))[0]
            if isinstance(reply, Exception):
                raise reply
            return reply
        return await self._commands.submit(command)

    async def close(self) -> None:
        """Close the connections. Never raises for a server that is gone."""
        await self._resources.run_asyncio(_close, self.client, self.subscriber)

    async def _call(self, script: Script, calls: Sequence[Command]) -> list[Any]:
        """Run a script that writes, until the server has confirmed it as the durability asks."""
        replies, confirmations = await self._resources.run_asyncio(
            call_script, self.client, script, calls, self._confirm
        )
        self._check(confirmations)
        return replies

    async def _ask_script(self, script: Script, keys: RedisKeys, call: Command) -> Any:
        replies, _ = await self._resources.run_asyncio(call_script, self.client, script, [call])
        reply = self._value(replies[0], keys)
        if not isinstance(reply, list) or len(reply) != 2:
            raise nonsense(self.client.place, "rolled_back")
        return reply

    async def _claim_together(self, claims: list[tuple[RedisKeys, Command]]) -> list[bytes | Exception | None]:
        replies = await self._call(CLAIM, [call for _, call in claims])
        return [self._state(reply, keys) for reply, (keys, _) in zip(replies, claims, strict=True)]

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        return await self._resources.run_asyncio(self.client.run, commands)

    def _check(self, confirmations: list[Any]) -> None:
        lacking = shortfall(self.durability, confirmations)
        if lacking is not None:
            raise StorageError(
                f"{self.client.place.safe} has the write, but {lacking}",
                outcome="unknown",
                hint="look at INFO replication and INFO persistence, or ask for another durability",
            )

    def _value(self, reply: Any, keys: RedisKeys) -> Any:
        if isinstance(reply, Exception):
            raise refused_value(reply, keys.name, self.client.place)
        return reply

    async def _read_together(self, keys: list[RedisKeys]) -> list[bytes | Exception | None]:
        values = await self._resources.run_asyncio(_read_all, self.client, keys)
        return [self._state(value, own) for own, value in zip(keys, values, strict=True)]

    def _state(self, reply: Any, keys: RedisKeys) -> bytes | Exception | None:
        """Return what a reply that is to be the value of a state says, or the error that it is."""
        if reply is None or isinstance(reply, bytes):
            return reply
        if isinstance(reply, Exception):
            return refused_value(reply, keys.name, self.client.place)
        return nonsense(self.client.place, "rolled_back")

    async def _execute_together(self, commands: list[Command]) -> list[Any]:
        replies = await self._resources.run_asyncio(_execute_all, self.client, commands)
        return [
            self._refused_command(command, reply) if isinstance(reply, Exception) else reply
            for command, reply in zip(commands, replies, strict=True)
        ]

    def _refused_command(self, command: Command, reply: Exception) -> DgentError:
        if isinstance(reply, DgentError):
            return reply
        error = translate(reply, self.client.place, outcome="rolled_back")
        if command[0].startswith(("EVAL", "FCALL")) and code_of(reply) not in _BEFORE_A_SCRIPT:
            error.outcome = "unknown"  # a script of the user's may have written something before it failed
        return error


def _packed(arg: Any) -> bytes | str:
    """Return an argument of a command as it goes out; what can't go out would take others with it.

    Raises:
        TypeError: it is of a type that has no one form.
        ValueError: it has a lone surrogate, or more digits than Python writes.
    """
    if isinstance(arg, bool) or not isinstance(arg, bytes | str | int | float):
        raise TypeError(f"an argument of execute is bytes, str, int or float, not {type(arg).__name__}")
    if isinstance(arg, str) and not is_encodable(arg):
        raise ValueError(f"execute: the argument {arg!r} has a lone surrogate, which can't be sent")
    return arg if isinstance(arg, bytes | str) else repr(arg)


async def _connect(place: RedisPlace) -> tuple[Client, ServerFacts]:
    client = connect(place)
    try:
        return client, ServerFacts.read(await client.ask(ASK))
    except BaseException:
        await client.close()
        raise


async def _read_all(client: Client, keys: Sequence[RedisKeys]) -> list[Any]:
    values = await _read_again(client, keys)
    absent = [i for i, value in enumerate(values) if value is None]
    if absent:  # is it the whole state that is not there, or a part of it?
        calls = [(3, keys[i].state, keys[i].history, keys[i].requests) for i in absent]
        replies, _ = await call_script(client, LOOK, calls)
        for i, reply in zip(absent, replies, strict=True):
            values[i] = reply
    return values


async def _read_again(client: Client, keys: Sequence[RedisKeys]) -> list[Any]:
    try:
        return await _read_once(client, keys)
    except StorageError as error:
        if not isinstance(error.__cause__, RedisConnectionError) or error.outcome == "rolled_back":
            raise
        return await _read_once(client, keys)  # an idle connection was cut; to read twice harms nobody


async def _read_once(client: Client, keys: Sequence[RedisKeys]) -> list[Any]:
    if len(keys) == 1 or client.is_cluster:
        return await client.run([("GET", own.state) for own in keys])
    chunks = [keys[i : i + _KEYS_A_READ] for i in range(0, len(keys), _KEYS_A_READ)]
    replies, _ = await call_script(client, READ, [(len(chunk), *(own.state for own in chunk)) for chunk in chunks])
    values: list[Any] = []
    for chunk, reply in zip(chunks, replies, strict=True):
        values += [reply] * len(chunk) if isinstance(reply, Exception) else reply
    return values


async def _execute_all(client: Client, commands: Sequence[Command]) -> list[Any]:
    if client.is_cluster:
        return await asyncio.gather(*(client.execute(command) for command in commands), return_exceptions=True)
    replies = await client.run(commands)
    return [client.shape(command[0], reply) for command, reply in zip(commands, replies, strict=True)]


async def _close(client: Client, subscriber: Subscriber) -> None:
    await subscriber.close()
    with suppress(*FAILURES):
        await client.close()
