"""Where the figures were measured: without this, a figure means nothing."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

_PACKAGES = ("dgents", "anyio", "trio", "msgspec", "msgpack", "aiosqlite", "redis", "psycopg", "numpy", "faiss-cpu")
_PEERS = (
    "pykka",
    "xoscar",
    "thespian",
    "ray",
    "diskcache",
    "eventsourcing",
    "langgraph",
    "langgraph-checkpoint-sqlite",
    "openai-agents",
    "google-adk",
    "lancedb",
    "py-key-value-aio",
)


class Environment(msgspec.Struct, frozen=True):
    """The machine, the interpreter, the libraries, and the file system that the durable figures depend on.

    ``peers`` are the versions of what dgents is compared with, as far as it is installed.
    """

    cpu: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    file_system: str
    date: str
    peers: dict[str, str] = {}

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores, {self.system}; {self.python}; {libraries}; "
            f"files on {self.file_system}; {self.date}"
        )


def environment(directory: Path) -> Environment:
    """Describe this machine, and the file system that ``directory`` is on."""
    return Environment(
        cpu=_cpu(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions={"sqlite": sqlite3.sqlite_version, **_versions(_PACKAGES)},
        file_system=_file_system(directory),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        peers=_versions(_PEERS),
    )


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # only Linux has it
        pass
    return platform.processor() or platform.machine() or "unknown"


def _file_system(directory: Path) -> str:
    """Return the type of the innermost mount that holds ``directory``; "unknown" where that can't be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    here = directory.resolve()
    found = (Path("/"), "unknown")
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if here.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
            found = (point, after.split()[0])
    return found[1]
