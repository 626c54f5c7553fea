"""Disks for tests: one that knows what a power cut could leave of it, one that fails, one at which we die.

Give them to `files.use(...)`, in this process or in a child (`in_child`).

The power cut is the strict reading of POSIX. What was written to a file since its last fsync may be there or
not, each write for itself, whole, torn, or as zeros. What was done to the names in a folder since its last
`fsync_directory` may be there or not, each step for itself. What was synced is there.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dgents.backends import files
from dgents.backends.files import FileLayer


class Change(NamedTuple):
    """A write of ``data`` at ``offset``, or, where it is None, a truncation to ``offset``."""

    offset: int
    data: bytes | None

    def on(self, before: bytes) -> bytes:
        """Return the file's bytes after it."""
        head = before[: self.offset].ljust(self.offset, b"\0")
        return head if self.data is None else head + self.data + before[self.offset + len(self.data) :]

    def fates(self) -> list[Change | None]:
        """Return what may become of it while it is not synced: first lost, then whole, then the rest."""
        found: list[Change | None] = [None, self]
        if self.data:
            size = len(self.data)
            found += [Change(self.offset, self.data[:cut]) for cut in sorted({1, size // 2, size - 1} - {0, size})]
            found.append(Change(self.offset, bytes(size)))
            found.append(Change(self.offset, bytes(size // 2) + self.data[size // 2 :]))
        return found


@dataclass(eq=False)
class Content:
    """One file: its durable bytes, and the changes that are not durable, oldest first."""

    durable: bytes = b""
    pending: list[Change] = field(default_factory=list)


class Step(NamedTuple):
    """A change of names: ``source`` is gone, ``target`` leads to ``content`` (None: a folder)."""

    source: Path | None
    target: Path | None
    content: Content | None


Names = dict[Path, Content | None]


@dataclass(frozen=True)
class Image:
    """What one power cut leaves: every name under the root with its bytes (None: a folder).

    ``acknowledged`` is what the test noted with `RecordingLayer.acknowledge` before the power went.
    """

    files: tuple[tuple[str, bytes | None], ...]
    acknowledged: tuple[Any, ...]

    def materialise(self, directory: Path) -> Path:
        """Build the image in ``directory``, which must not exist, and return it."""
        directory.mkdir(mode=0o700)
        for name, content in self.files:
            path = directory / name
            if content is None:
                path.mkdir(mode=0o700)
            else:
                path.write_bytes(content)
                path.chmod(0o600)
        return directory


class RecordingLayer(FileLayer):
    """The real file system below ``root``, and a record of how much of it is durable.

    One thread at a time keeps the record: an agent's writer may go on while a task tells what was acknowledged.

    ``deaf`` names operations that run but make nothing durable in the record, as if they were left out of the
    code. ``limit`` bounds the images of one moment: all combinations if they are that few, else the two
    extremes and random ones (``seed``).

    Example:
        for n, image in enumerate(RecordingLayer(root).power_cuts(work)):
            check(image.materialise(fresh / str(n)), image.acknowledged)
    """

    def __init__(self, root: Path, *, deaf: str = "", limit: int = 40, seed: int = 0) -> None:
        self.root = root
        self.deaf = deaf.split()
        self.limit = limit
        self.random = random.Random(seed)
        self.acknowledged: list[Any] = []
        self._recording = threading.RLock()
        self._on_change: Callable[[], None] = lambda: None
        self._names: Names = {root: None}
        for path in sorted(root.rglob("*")):
            self._names[path] = Content(path.read_bytes()) if path.is_file() else None
        self._durable: Names = dict(self._names)
        self._pending: dict[Path, list[Step]] = {}
        self._open: dict[int, Content] = {}

    def power_cuts(self, work: Callable[[], None]) -> list[Image]:
        """Run ``work`` on this disk and return each image that a power cut in it or after it could leave."""
        found: dict[Image, None] = {}
        self._on_change = lambda: found.update(dict.fromkeys(self.images()))
        with files.use(self):
            self._on_change()
            work()
        self._on_change = lambda: None
        return list(found)

    def acknowledge(self, what: Any) -> None:
        """Note that ``what`` was promised: every image from now on has to contain it."""
        with self._recording:
            self.acknowledged.append(what)
            self._on_change()

    def end_of_process(self) -> None:
        """Close every file, as the end of a process does: nothing is synced by it."""
        for fd in list(self._open):
            self.close(fd)

    def doubt(self, path: Path, durable: bytes) -> None:
        """Say that the disk holds only ``durable`` of a file, and that the system takes the rest for written.

        That is what a failed fsync may leave behind: the next one succeeds, and writes nothing.
        """
        content = self._names[path]
        assert content is not None
        content.durable = durable

    def durable(self, path: Path) -> bytes:
        """Return what the disk holds of a file."""
        content = self._names[path]
        assert content is not None
        return content.durable

    def images(self) -> Iterator[Image]:
        """Yield what a power cut at this moment could leave."""
        steps = [step for steps in self._pending.values() for step in steps]
        tables = [self._durable, self._names, {Path(str(n)): step.content for n, step in enumerate(steps)}]
        contents = {content: None for table in tables for content in table.values() if content is not None}
        changes = [(content, change) for content in contents for change in content.pending]
        choices: list[list[Any]] = [[None, step] for step in steps] + [change.fates() for _, change in changes]
        for chosen in self._combinations(choices):
            table = dict(self._durable)
            for step in chosen[: len(steps)]:
                _take(table, step)
            data = {content: content.durable for content in contents}
            for (content, _), fate in zip(changes, chosen[len(steps) :], strict=True):
                data[content] = fate.on(data[content]) if fate else data[content]
            names = sorted(path for path in table if path != self.root and self._reached(table, path))
            kept = tuple((str(p.relative_to(self.root)), data[c] if (c := table[p]) else None) for p in names)
            yield Image(kept, tuple(self.acknowledged))

    def _combinations(self, choices: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
        if math.prod(map(len, choices)) <= self.limit:
            yield from itertools.product(*choices)
            return
        yield tuple(options[0] for options in choices)
        yield tuple(options[1] for options in choices)
        for _ in range(self.limit - 2):
            yield tuple(self.random.choice(options) for options in choices)

    def _reached(self, table: Names, path: Path) -> bool:
        return all(parent in table for parent in path.parents if parent.is_relative_to(self.root))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        with self._recording:
            content = self._names.get(path)
            if content is None:
                content = Content()
                self._step(Step(None, path, content))
            self._open[fd] = content
            if flags & os.O_TRUNC:
                self._change(fd, Change(0, None))
        return fd

    def write_some(self, fd: int, data: bytes | memoryview, offset: int | None) -> int:
        start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        written = super().write_some(fd, data, offset)
        self._change(fd, Change(start, bytes(data[:written])))
        return written

    def truncate(self, fd: int, size: int) -> None:
        super().truncate(fd, size)
        self._change(fd, Change(size, None))

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self._sync("fsync", fd)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self._sync("fdatasync", fd)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)  # Before the number may be another thread's file.
        super().close(fd)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._step(Step(source, target, self._names[source]))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._step(Step(path, None, None))

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self._step(Step(None, path, None))

    def fsync_directory(self, path: Path) -> None:
        super().fsync_directory(path)
        if "fsync_directory" in self.deaf:
            return
        with self._recording:
            for step in self._pending.pop(path, []):
                _take(self._durable, step)
            self._on_change()

    def _change(self, fd: int, change: Change) -> None:
        with self._recording:
            self._open[fd].pending.append(change)
            self._on_change()

    def _sync(self, operation: str, fd: int) -> None:
        if operation in self.deaf:
            return
        with self._recording:
            content = self._open[fd]
            for change in content.pending:
                content.durable = change.on(content.durable)
            content.pending.clear()
            self._on_change()

    def _step(self, step: Step) -> None:
        with self._recording:
            _take(self._names, step)
            named = step.target or step.source
            assert named is not None
            self._pending.setdefault(named.parent, []).append(step)
            self._on_change()


def _take(table: Names, step: Step | None) -> None:
    if step is None:
        return
    if step.source is not None:
        table.pop(step.source, None)
    if step.target is not None:
        table[step.target] = step.content


class FaultyLayer(FileLayer):
    """Fails with ``code`` in the ``at``-th call of ``operation`` (from 1), and in ``times`` calls in all.

    Example:
        >>> disk = FaultyLayer("fdatasync", errno.EIO, at=3)
    """

    def __init__(self, operation: str, code: int, *, at: int = 1, times: int = 1) -> None:
        self.calls = 0
        works = getattr(self, operation)

        def fails(*args: Any) -> Any:
            self.calls += 1
            if at <= self.calls < at + times:
                raise OSError(code, os.strerror(code))
            return works(*args)

        setattr(self, operation, fails)


class HastyLayer(FileLayer):
    """Skips every sync: for tests of what files hold, not of what survives."""

    def fsync(self, fd: int) -> None: ...

    def fdatasync(self, fd: int) -> None: ...

    def fsync_directory(self, path: Path) -> None: ...


class StutteringLayer(FileLayer):
    """Takes at most ``most`` bytes in a write, and every other time none at all, interrupted."""

    def __init__(self, most: int = 3) -> None:
        self.most = most
        self.calls = 0

    def write_some(self, fd: int, data: bytes | memoryview, offset: int | None) -> int:
        self.calls += 1
        if self.calls % 2:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        return super().write_some(fd, data[: self.most], offset)


class KillingLayer(FileLayer):
    """Kills this process, with no last word, at the ``at``-th time (from 1) that the step ``name`` comes."""

    def __init__(self, name: str, *, at: int = 1) -> None:
        self.name = name
        self.left = at

    def step(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; return its exit code (0: all well) or minus the signal it died of."""
    with warnings.catch_warnings():
        # Other tests may have left idle worker threads; the child needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
