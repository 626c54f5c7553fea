"""Thespian: a process an actor, asked over TCP, as in https://thespianpy.com/doc/using (``ask``)."""

from __future__ import annotations

import threading
from pathlib import Path
from socket import socket
from typing import Any

import anyio.to_thread
from thespian.actors import Actor, ActorSystem

from dgents.benchmarks.states import State

_TIMEOUT = 30  # seconds


class Keeper(Actor):
    def receiveMessage(self, message: Any, sender: Any) -> None:
        word, state = message if isinstance(message, tuple) else (None, None)
        if word == "save":
            self._state = state
        elif word == "increment":
            self._state["visits"] += 1
        elif word != "load":
            return
        self.send(sender, self._state)


class ThespianActor:
    """An actor system may be asked from one thread at a time."""

    name = "Thespian, TCP"

    async def setup(self, directory: Path, state: Any = None, keys: int = 1) -> None:
        self._asking = threading.Lock()
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        quiet = {"version": 1, "disable_existing_loggers": False}
        self._system = ActorSystem("multiprocTCPBase", {"Admin Port": port}, logDefs=quiet, transientUnique=True)
        self._actors = [self._system.createActor(Keeper) for _ in range(keys)]
        for key in range(keys):
            await self.save(state, key)

    async def load(self, key: int = 0) -> State:
        state: State = await self._ask(key, "load")
        return state

    async def save(self, state: State, key: int = 0) -> None:
        await self._ask(key, "save", state)

    async def increment(self, key: int = 0) -> None:
        await self._ask(key, "increment")

    async def close(self) -> None:
        await anyio.to_thread.run_sync(self._system.shutdown)

    async def _ask(self, key: int, word: str, state: State | None = None) -> Any:
        return await anyio.to_thread.run_sync(self._blocking_ask, key, (word, state))

    def _blocking_ask(self, key: int, message: Any) -> Any:
        with self._asking:
            answer = self._system.ask(self._actors[key], message, _TIMEOUT)
        if answer is None:
            raise TimeoutError("Thespian did not answer")
        return answer
